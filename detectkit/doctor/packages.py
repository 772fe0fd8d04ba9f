"""Packages that detectkit needs, by its own list, and the code that is generated from proto/."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import detectkit
from detectkit.doctor.lines import Diagnosis, first_line
from detectkit.errors import DetectkitError
from detectkit.versions import MISSING, versions

SOURCE = Path(detectkit.__file__).parent.parent  # the checkout, where it is one
# Where the name of a package is not that of its module.
IMPORTS = {
    "google-crc32c": "google_crc32c",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
# A training does without these.
FOR_OTHER_COMMANDS = {"h5py", "onnx", "onnxruntime", "pyyaml", "scikit-learn", "shtab", "tensorboard"}
EXTRAS = {
    "coco": "to count as COCO does (evaluation_config.protocol)",
    "tensorrt": "to build TensorRT engines",
    "wandb": "to watch a training in Weights & Biases",
    "clearml": "to watch a training in ClearML",
}
GENERATE = f"in {SOURCE}: python -c 'import setup; setup.generate()'"


def packages(folder: Path) -> Iterator[Diagnosis]:
    needed = requirements()[""]
    found = {name: _missing(name, bounds) or _broken(name) for name, bounds in needed}
    wrong = {name: problem for name, problem in found.items() if problem}
    named = versions()
    shown = ", ".join(f"{name} {named[name]}" for name in ("Python", "torch", "torchvision"))
    yield Diagnosis("ok", f"detectkit {named['detectkit']}, {shown}, on {named['platform']}")
    if not wrong:
        yield Diagnosis("ok", f"all {len(needed)} packages that detectkit needs are here and load")
    for name, problem in wrong.items():
        grade = "note" if name in FOR_OTHER_COMMANDS else "fault"
        yield Diagnosis(grade, problem, install(dict(needed), name))


def extras(folder: Path) -> Iterator[Diagnosis]:
    bounds_by_extra = requirements()
    for extra, purpose in EXTRAS.items():
        needed = bounds_by_extra.get(extra, [])
        wrong = [problem for name, bounds in needed if (problem := _missing(name, bounds))]
        if extra == "tensorrt" and versions()["TensorRT"] != MISSING:
            yield Diagnosis("ok", f"{extra}: {versions()['TensorRT']}")  # NVIDIA's own packages serve as well
        elif wrong:
            yield Diagnosis(
                "note", f"{extra}, {purpose}: {'; '.join(wrong)}", install(dict(needed), extra=extra)
            )
        else:
            yield Diagnosis("ok", f"{extra}, {purpose}: {', '.join(name for name, _ in needed)}")


def requirements() -> dict[str, list[tuple[str, str]]]:
    """Packages with the bounds of their versions, by extra ("" for none): of the checkout, or of what is installed."""
    settings = configparser.ConfigParser()
    found: dict[str, list[str]] = {}
    if settings.read(SOURCE / "setup.cfg") and settings.get("metadata", "name", fallback="") == "detectkit":
        found = {"": settings["options"]["install_requires"].split("\n")}
        found |= {name: text.split("\n") for name, text in settings["options.extras_require"].items()}
    else:
        for line in importlib.metadata.requires("detectkit") or []:
            text, _, marker = line.partition(";")
            extra = re.search(r"""extra == ["']([\w-]+)""", marker)
            found.setdefault(extra[1] if extra else "", []).append(text)
    return {name: [_split(line) for line in lines if line.strip()] for name, lines in found.items()}


def _split(requirement: str) -> tuple[str, str]:
    name = re.match(r"\s*[\w.-]+", requirement)
    assert name is not None, requirement
    return name[0].strip(), requirement[name.end() :].replace(" ", "")


def _missing(name: str, bounds: str) -> str:
    """What is wrong with a package as it is installed; "" if nothing is."""
    version = _version(name) or _version(f"{name}-gpu")  # as ONNX Runtime for GPUs is called
    if version is None:
        return f"{name} is not installed"
    return "" if _fits(version, bounds) else f"{name} {version} is not {bounds}"


def _broken(name: str) -> str:
    """Why a package does not load; "" if it does."""
    try:
        importlib.import_module(IMPORTS.get(name, name.replace("-", "_")))
    except Exception as error:
        return f"{name} does not load ({type(error).__name__}: {first_line(error)})"
    return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    from packaging.specifiers import SpecifierSet  # only needed here

    return SpecifierSet(bounds).contains(version, prereleases=True)


def install(needed: dict[str, str], name: str | None = None, *, extra: str = "") -> str:
    """The command that installs a package of detectkit's own requirements, or those of an extra."""
    if extra and (SOURCE / "setup.cfg").is_file():
        return f"in {SOURCE}: pip install -e '.[{extra}]'"
    wanted = [name] if name else list(needed)
    return "pip install " + " ".join(shlex.quote(item + needed[item]) for item in wanted)


def generated_code(folder: Path) -> Iterator[Diagnosis]:
    """The message classes load, and in a checkout they are those of proto/."""
    importlib.import_module("detectkit.spec")
    proto = SOURCE / "proto"
    if not proto.is_dir():
        yield Diagnosis("ok", "the spec's message classes load")
    elif importlib.util.find_spec("grpc_tools") is None:
        yield Diagnosis(
            "ok", "the spec's message classes load (grpcio-tools would tell whether they are current)"
        )
    elif _own_files(_compiled(proto)) == _own_files((SOURCE / "detectkit/spec/schema.binpb").read_bytes()):
        yield Diagnosis("ok", "the spec's message classes are those of proto/")
    else:
        yield Diagnosis("fault", "the spec's message classes are older than proto/", GENERATE)


def _compiled(proto: Path) -> bytes:
    """What `setup.generate` writes as schema.binpb, made anew."""
    import grpc_tools
    from grpc_tools import protoc

    files = sorted(str(path) for path in proto.rglob("*.proto") if "spec" in path.parts)
    includes = [f"-I{proto}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "schema.binpb")
        options = [f"--descriptor_set_out={output}", "--include_source_info", "--include_imports"]
        if protoc.main(["protoc", *includes, *options, *files]):
            raise DetectkitError(f"protoc cannot compile {proto}: see the lines above")
        return output.read_bytes()


def _own_files(schema: bytes) -> list[bytes]:
    """Those of proto/, each serialized; protobuf's own files in a schema change with the version that compiled it."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    files = FileDescriptorSet.FromString(schema).file
    return [
        file.SerializeToString(deterministic=True) for file in files if not file.name.startswith("google/")
    ]
