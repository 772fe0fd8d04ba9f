"""What is installed on this machine, which device and runtimes work, how fast the disk and the decoder are, and how
to mend what is wrong. Exit code 0 if a training works here, 1 if not."""

from __future__ import annotations

import argparse
import configparser
import importlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import detectkit
from detectkit.console import say
from detectkit.errors import DetectkitError, ModelError
from detectkit.versions import MISSING, processor, versions

if TYPE_CHECKING:
    import onnx

SOURCE = Path(detectkit.__file__).parent.parent  # the checkout, where it is one
CGROUP = Path("/sys/fs/cgroup")  # limits of a container
SHARED_MEMORY = Path("/dev/shm")
DRIVER = Path("/proc/driver/nvidia/version")
MEBIBYTE, GIBIBYTE = 2**20, 2**30
LEAST_SHARED, LEAST_MEMORY, LEAST_SPACE = GIBIBYTE // 2, 4 * GIBIBYTE, 2 * GIBIBYTE
WRITTEN = 64 * MEBIBYTE  # to measure the disk, for DISK_SECONDS at most each way
DISK_SECONDS = 2.0
DECODE_SECONDS = 0.5
PICTURE = (640, 480)

# Where the name of a package is not that of its module.
IMPORTS = {
    "google-crc32c": "google_crc32c",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "scikit-learn": "sklearn",
}
# A training does without these.
FOR_OTHER_COMMANDS = {"h5py", "onnx", "onnxruntime", "scikit-learn", "shtab", "tensorboard"}
EXTRAS = {
    "coco": "to count as COCO does (evaluation_config.protocol)",
    "tensorrt": "to build TensorRT engines",
    "wandb": "to watch a training in Weights & Biases",
    "clearml": "to watch a training in ClearML",
}


class Line(NamedTuple):
    """What a check has found."""

    grade: (
        str  # "ok"; "note": a training works, something else does not, or is slow; "fault": no training works
    )
    text: str
    fix: str = ""  # of a note or a fault


class Check(NamedTuple):
    title: str
    find: Callable[[Path], Iterator[Line]]  # from the folder of the results
    fix: str  # where `find` itself fails
    for_training: bool = False  # such a failure is then a fault, else a note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where results would go: the disk that is measured (the current folder)",
    )


def run(args: argparse.Namespace) -> None:
    found = [line for check in CHECKS for line in _examine(check, args.results_dir)]
    faults, notes = ([line for line in found if line.grade == grade] for grade in ("fault", "note"))
    if faults or notes:
        say("\nto mend:")
    for line in faults + notes:
        say(f"- {line.text}\n  {line.fix}")
    if faults:
        raise DetectkitError(f"training does not work on this machine: {faults[0].text}; the fix is above")
    say("\ntraining works on this machine")


def _examine(check: Check, folder: Path) -> list[Line]:
    """Run a check and print its lines; an exception, whatever it is, becomes one of them."""
    found = []
    try:
        with warnings.catch_warnings(action="ignore"):  # of packages on each other
            for line in check.find(folder):
                found.append(line)
                _print(check.title if len(found) == 1 else "", line)
    except Exception as error:
        grade = "fault" if check.for_training else "note"
        found.append(Line(grade, f"{check.title}: {type(error).__name__}: {_first_line(error)}", check.fix))
        _print(check.title if len(found) == 1 else "", found[-1])
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["it gives no reason"])[0]


def _print(title: str, line: Line) -> None:
    say(f"{title:<14}  {line.grade:<5}  {line.text}")


def packages(folder: Path) -> Iterator[Line]:
    needed = _requirements()[""]
    found = {name: _missing(name, bounds) or _broken(name) for name, bounds in needed}
    wrong = {name: problem for name, problem in found.items() if problem}
    named = versions()
    shown = ", ".join(f"{name} {named[name]}" for name in ("Python", "torch", "torchvision"))
    yield Line("ok", f"detectkit {named['detectkit']}, {shown}, on {named['platform']}")
    if not wrong:
        yield Line("ok", f"all {len(needed)} packages that detectkit needs are here and load")
    for name, problem in wrong.items():
        grade = "note" if name in FOR_OTHER_COMMANDS else "fault"
        yield Line(grade, problem, _install(dict(needed), name))


def extras(folder: Path) -> Iterator[Line]:
    requirements = _requirements()
    for extra, purpose in EXTRAS.items():
        needed = requirements.get(extra, [])
        wrong = [problem for name, bounds in needed if (problem := _missing(name, bounds))]
        if extra == "tensorrt" and versions()["TensorRT"] != MISSING:
            yield Line("ok", f"{extra}: {versions()['TensorRT']}")  # NVIDIA's own packages serve as well
        elif wrong:
            yield Line("note", f"{extra}, {purpose}: {'; '.join(wrong)}", _install(dict(needed), extra=extra))
        else:
            yield Line("ok", f"{extra}, {purpose}: {', '.join(name for name, _ in needed)}")


def _requirements() -> dict[str, list[tuple[str, str]]]:
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
    version = next(
        filter(None, map(_version, (name, f"{name}-gpu"))), None
    )  # as ONNX Runtime for GPUs is called
    if version is None:
        return f"{name} is not installed"
    return "" if _fits(version, bounds) else f"{name} {version} is not {bounds}"


def _broken(name: str) -> str:
    """Why a package does not load; "" if it does."""
    try:
        importlib.import_module(IMPORTS.get(name, name.replace("-", "_")))
    except Exception as error:
        return f"{name} does not load ({type(error).__name__}: {_first_line(error)})"
    return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    from packaging.specifiers import SpecifierSet  # only needed here

    return SpecifierSet(bounds).contains(version, prereleases=True)


def _install(needed: dict[str, str], name: str | None = None, *, extra: str = "") -> str:
    """The command that installs a package of detectkit's own requirements, or those of an extra."""
    if extra and (SOURCE / "setup.cfg").is_file():
        return f"in {SOURCE}: pip install -e '.[{extra}]'"
    wanted = [name] if name else list(needed)
    return "pip install " + " ".join(shlex.quote(item + needed[item]) for item in wanted)


def generated_code(folder: Path) -> Iterator[Line]:
    """The message classes load, and in a checkout they are those of proto/."""
    importlib.import_module("detectkit.spec")
    proto = SOURCE / "proto"
    if not proto.is_dir():
        yield Line("ok", "the spec's message classes load")
    elif importlib.util.find_spec("grpc_tools") is None:
        yield Line("ok", "the spec's message classes load (grpcio-tools would tell whether they are current)")
    elif _compiled(proto) == (SOURCE / "detectkit/spec/schema.binpb").read_bytes():
        yield Line("ok", "the spec's message classes are those of proto/")
    else:
        yield Line("fault", "the spec's message classes are older than proto/", GENERATE)


GENERATE = f"in {SOURCE}: python -c 'import setup; setup.generate()'"


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


def cpu(folder: Path) -> Iterator[Line]:
    import torch

    from detectkit import spec
    from detectkit.train.precision import number_format

    half = spec.ModelConfig.TrainingPrecision(backend_floatx=spec.ModelConfig.TrainingPrecision.FLOAT16)
    able = number_format(half, torch.device("cpu")) == torch.bfloat16
    cores, threads = _cores(), torch.get_num_threads()
    units = "bfloat16 units" if able else "no bfloat16 units: backend_floatx: FLOAT16 gives nothing here"
    yield Line("ok", f"{processor()}, {cores:g} cores for us, {threads} threads, {units}")
    if threads > max(cores, 1):
        text = f"{threads} threads on {cores:g} cores wait for each other"
        yield Line("note", text, f"export OMP_NUM_THREADS={max(int(cores), 1)}")


def _cores() -> float:
    """That this process may use: by its affinity, and by the limit of its container."""
    able = getattr(os, "sched_getaffinity", None)
    cores = len(able(0)) if able else os.cpu_count() or 1
    limit = _limit("cpu.max").split()
    return min(cores, int(limit[0]) / int(limit[1])) if len(limit) == 2 and limit[0] != "max" else cores


def _limit(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


def memory(folder: Path) -> Iterator[Line]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    usable = min(total, int(limit)) if limit.isdigit() else total
    of_container = " (the limit of the container)" if usable < total else ""
    text = f"{usable / GIBIBYTE:.1f} GiB{of_container}"
    if usable >= LEAST_MEMORY:
        yield Line("ok", text)
    else:
        fix = (
            "use another machine or raise the limit, or lower training_config.batch_size_per_gpu and workers"
        )
        yield Line("note", f"{text} of memory is little", fix)


def gpus(folder: Path) -> Iterator[Line]:
    import torch

    with warnings.catch_warnings(record=True, action="always") as said:  # an old driver is only a warning
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = _driver()
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        size = f"{gpu.total_memory / GIBIBYTE:.1f} GiB, compute capability {gpu.major}.{gpu.minor}"
        yield Line("ok", f"{number}: {gpu.name}, {size}, driver {driver or 'unknown'}")
    if count:
        return
    if not driver:
        yield Line("ok", "none: training runs on the CPU")
    elif torch.version.cuda is None:
        text = f"there is NVIDIA's driver {driver}, but torch {torch.__version__} is built without CUDA"
        yield Line(
            "note", text, "pip install --force-reinstall torch torchvision, from pytorch.org's CUDA index"
        )
    else:
        reason = str(said[0].message).partition("(")[0].strip() if said else "it finds none"
        text = f"NVIDIA's driver {driver} is here, but torch with CUDA {torch.version.cuda} uses no GPU: {reason}"
        yield Line("note", text, "a newer driver; in a container, start it with --gpus all")


def _driver() -> str:
    """The version of NVIDIA's driver; "" without one."""
    command = shutil.which("nvidia-smi")
    if command:
        query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=10)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.split("\n")[0].strip()
    version = re.search(r"Module.*?  (\d[\d.]*)", DRIVER.read_text()) if DRIVER.is_file() else None
    return version[1] if version else ""


def training(folder: Path) -> Iterator[Line]:
    """One step of a small network on each kind of device, with all that a training imports."""
    import torch

    importlib.import_module("detectkit.train.loop")
    yield _step("cpu")
    if torch.cuda.is_available():
        try:
            yield _step("cuda")
        except (RuntimeError, AssertionError) as error:
            text = f"a step on the GPU fails: {_first_line(error)}"
            fix = "install a torch that is built for this GPU (pytorch.org), or give --gpus 0 to each command"
            yield Line("fault", text, fix)


def _step(device: str) -> Line:
    import torch

    from detectkit import spec
    from detectkit.model.detector import build

    start = time.monotonic()
    costs = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = spec.ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True)
        detector = build(config, ["object"], 3).to(device)
        images = torch.rand(2, 3, 64, 64).to(device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4)  # so small that the cost must fall
    for _ in range(2):
        coverage, boxes = detector(images)
        cost = coverage.square().mean() + boxes.square().mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    if not costs[1] < costs[0]:
        fix = "install torch again: pip install --force-reinstall torch torchvision"
        return Line("fault", f"a step of a ResNet10 on {device} learns nothing: cost {costs}", fix)
    return Line("ok", f"two steps of a ResNet10 on {device} in {time.monotonic() - start:.1f} s")


def _one_layer() -> onnx.ModelProto:
    """A convolution of ones: 27 for an image of ones, but for its rim."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from detectkit.deploy.onnx import OPSET
    from detectkit.model.header import INPUT

    weight = numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "weight")
    node = helper.make_node("Conv", [INPUT, "weight"], ["sum"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 1, 8, 8])],
        [weight],
    )
    opset = helper.make_opsetid("", OPSET)
    version = helper.find_min_ir_version_for([opset])
    return helper.make_model(graph, opset_imports=[opset], ir_version=version)


def onnx_runtime(folder: Path) -> Iterator[Line]:
    import numpy as np
    import onnxruntime
    import torch

    from detectkit.runtimes.onnx import CUDA, make_session

    model = _one_layer().SerializeToString()
    names = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    for device in ["cpu"] + ["cuda"] * (
        torch.cuda.is_available() and CUDA in onnxruntime.get_available_providers()
    ):
        session = make_session(model, device=device)
        used = session.get_providers()[0].removesuffix("ExecutionProvider")
        (found,) = session.run(None, {"images": np.ones((1, 3, 8, 8), np.float32)})
        right = abs(float(found[0, 0, 4, 4]) - 27) < 0.1
        if right and used == device.upper():
            yield Line("ok", f"{onnxruntime.__version__} runs a layer on {used}; it has {names}")
        else:
            result = "the right" if right else "a wrong"
            text = (
                f"ONNX Runtime {onnxruntime.__version__} asked for {device} gives {result} result on {used}"
            )
            yield Line("note", text, REINSTALL_RUNTIME)
    if torch.cuda.is_available() and CUDA not in onnxruntime.get_available_providers():
        text = "ONNX Runtime cannot use the GPU: ONNX models run on the CPU"
        yield Line("note", text, "pip uninstall onnxruntime && pip install onnxruntime-gpu")


REINSTALL_RUNTIME = "pip install --force-reinstall onnxruntime (onnxruntime-gpu for a GPU)"


def tensorrt(folder: Path) -> Iterator[Line]:
    import torch

    from detectkit.runtimes.tensorrt import library

    try:
        found = library()
    except ModelError as error:
        tried = versions()["TensorRT"]
        needed = dict(_requirements().get("tensorrt", []))
        text = (
            "not installed, so no engines" if tried == MISSING else str(error).partition(": pip install")[0]
        )
        yield Line("note", f"TensorRT: {text}", _install(needed, extra="tensorrt"))
        return
    if not found.ahead_of_time and not torch.cuda.is_available():
        text = f"{found.title} loads; building and running engines needs a GPU, which is not here"
        yield Line("ok", text)
        return

    from detectkit.deploy.engine import build

    start = time.monotonic()
    plan = build(_one_layer(), path="a model of one layer", library=found).plan
    built = f"{found.title} builds an engine of one layer in {time.monotonic() - start:.1f} s"
    if not torch.cuda.is_available():
        yield Line("ok", f"{built}; running it needs a GPU, which is not here")
    elif abs(_run_engine(found, plan) - 27) < 0.1:
        yield Line("ok", f"{built}, and runs it")
    else:
        reason = "; ".join(found.take_errors()) or "a wrong result"
        yield Line("note", f"{built}, but cannot run it: {reason}", "a newer driver, or another TensorRT")


def _run_engine(library: Any, plan: bytes) -> float:
    """The middle of the layer's output for an image of ones; NaN where it cannot be run."""
    import torch

    engine = library.trt.Runtime(library.log).deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine else None
    if context is None:
        return float("nan")
    images, found = torch.ones(1, 3, 8, 8, device="cuda"), torch.zeros(1, 1, 8, 8, device="cuda")
    context.set_tensor_address("images", images.data_ptr())
    context.set_tensor_address("sum", found.data_ptr())
    done = context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return found[0, 0, 4, 4].item() if done else float("nan")


def shared_memory(folder: Path) -> Iterator[Line]:
    if not SHARED_MEMORY.is_dir():
        return  # no Linux: torch has other ways there
    size = shutil.disk_usage(SHARED_MEMORY).total
    text = f"{SHARED_MEMORY} has {size / MEBIBYTE:.0f} MiB"
    if size >= LEAST_SHARED:
        yield Line("ok", f"{text}, for the images on their way from the loader processes")
    else:
        fix = (
            "start the container with --shm-size=2g (compose: shm_size), or set training_config.workers to 0"
        )
        yield Line("note", f"{text}, too little for loader processes: they may die of it", fix)


def disk(folder: Path) -> Iterator[Line]:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        written, read = _disk_speeds(place)
        space = shutil.disk_usage(place).free
    except OSError as error:
        text = f"cannot write to {folder}: {error.strerror or error}"
        yield Line("fault", text, "make room or set its permissions, or name another folder with -r")
        return
    text = f"{place}: writes {written:.0f} MiB/s, reads {read:.0f} MiB/s, {space / GIBIBYTE:.1f} GiB free"
    if space >= LEAST_SPACE:
        yield Line("ok", text)
    else:
        yield Line(
            "note", f"{text}, which is little for records and models", "make room, or use another disk"
        )


def _disk_speeds(folder: Path) -> tuple[float, float]:
    """MiB/s of writing a file until it is on the disk, and of reading it, from there if the system forgets it."""
    block = os.urandom(4 * MEBIBYTE)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start, size = time.perf_counter(), 0
        while size < WRITTEN and time.perf_counter() - start < DISK_SECONDS:
            size += file.write(block)
        os.fsync(file.fileno())
        written = size / MEBIBYTE / (time.perf_counter() - start)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start, size = time.perf_counter(), 0
        while (part := file.read(len(block))) and time.perf_counter() - start < DISK_SECONDS:
            size += len(part)
        return written, size / MEBIBYTE / (time.perf_counter() - start)


def decoder(folder: Path) -> Iterator[Line]:
    import PIL
    from PIL import features

    speeds = [f"{_decode_speed(kind):.0f} {kind}" for kind in ("JPEG", "PNG")]
    size = "x".join(map(str, PICTURE))
    yield Line("ok", f"{' and '.join(speeds)} images/s of {size} on one core, Pillow {PIL.__version__}")
    if not features.check_feature("libjpeg_turbo"):
        fix = "pip install --force-reinstall --only-binary :all: pillow"
        yield Line("note", "this Pillow is built without libjpeg-turbo: JPEG takes several times longer", fix)


def _decode_speed(kind: str) -> float:
    """Images/s, as training decodes them: of a soft picture with a little noise, as photographs are."""
    import numpy as np
    from PIL import Image

    from detectkit.data.dataset import decode, open_image

    random = np.random.default_rng(0)
    soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        PICTURE, Image.Resampling.BICUBIC
    )
    noise = random.integers(-4, 5, np.asarray(soft).shape)
    encoded = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)).save(
        encoded, kind, quality=90
    )
    start, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < DECODE_SECONDS or not count:
        with open_image(io.BytesIO(encoded.getvalue()), name="picture") as image:
            decode(image, channels=3, target_size=None, name="picture")
        count += 1
    return count / seconds


INSTALL_AGAIN = "install detectkit again, as its README says"
CHECKS = (
    Check("packages", packages, INSTALL_AGAIN, for_training=True),
    Check("extras", extras, INSTALL_AGAIN),
    Check("generated code", generated_code, GENERATE, for_training=True),
    Check("CPU", cpu, "install torch again: pip install --force-reinstall torch torchvision"),
    Check("memory", memory, "see how much memory there is with free -h"),
    Check("GPU", gpus, "see what nvidia-smi says; --gpus 0 uses the CPU"),
    Check("training", training, INSTALL_AGAIN, for_training=True),
    Check("ONNX Runtime", onnx_runtime, REINSTALL_RUNTIME),
    Check(
        "TensorRT", tensorrt, "pip install --force-reinstall what `detectkit --version` shows for TensorRT"
    ),
    Check("shared memory", shared_memory, f"see df -h {SHARED_MEMORY}"),
    Check("disk", disk, "name another folder with -r", for_training=True),
    Check(
        "decoder", decoder, "install Pillow again: pip install --force-reinstall pillow", for_training=True
    ),
)
