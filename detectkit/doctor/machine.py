"""The machine: processor, memory, GPUs, and how fast its disk and the decoder of images are."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from detectkit.doctor.lines import Diagnosis
from detectkit.versions import processor

CGROUP = Path("/sys/fs/cgroup")  # limits of a container
SHARED_MEMORY = Path("/dev/shm")
DRIVER = Path("/proc/driver/nvidia/version")
MEBIBYTE, GIBIBYTE = 2**20, 2**30
LEAST_SHARED, LEAST_MEMORY, LEAST_SPACE = GIBIBYTE // 2, 4 * GIBIBYTE, 2 * GIBIBYTE
WRITTEN = 64 * MEBIBYTE  # to measure the disk, for DISK_SECONDS at most each way
DISK_SECONDS = 2.0
DECODE_SECONDS = 0.5
PICTURE = (640, 480)


def cpu(folder: Path) -> Iterator[Diagnosis]:
    import torch

    from detectkit import spec
    from detectkit.train.precision import number_format

    half = spec.ModelConfig.TrainingPrecision(backend_floatx=spec.ModelConfig.TrainingPrecision.FLOAT16)
    able = number_format(half, torch.device("cpu")) == torch.bfloat16
    cores, threads = _cores(), torch.get_num_threads()
    units = "bfloat16 units" if able else "no bfloat16 units: backend_floatx: FLOAT16 gives nothing here"
    yield Diagnosis("ok", f"{processor()}, {cores:g} cores for us, {threads} threads, {units}")
    if threads > max(cores, 1):
        text = f"{threads} threads on {cores:g} cores wait for each other"
        yield Diagnosis("note", text, f"export OMP_NUM_THREADS={max(int(cores), 1)}")


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


def memory(folder: Path) -> Iterator[Diagnosis]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    usable = min(total, int(limit)) if limit.isdigit() else total
    of_container = " (the limit of the container)" if usable < total else ""
    text = f"{usable / GIBIBYTE:.1f} GiB{of_container}"
    if usable >= LEAST_MEMORY:
        yield Diagnosis("ok", text)
    else:
        fix = (
            "use another machine or raise the limit, or lower training_config.batch_size_per_gpu and workers"
        )
        yield Diagnosis("note", f"{text} of memory is little", fix)


def gpus(folder: Path) -> Iterator[Diagnosis]:
    import torch

    with warnings.catch_warnings(record=True, action="always") as said:  # an old driver is only a warning
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = _driver()
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        size = f"{gpu.total_memory / GIBIBYTE:.1f} GiB, compute capability {gpu.major}.{gpu.minor}"
        yield Diagnosis("ok", f"{number}: {gpu.name}, {size}, driver {driver or 'unknown'}")
    if count:
        return
    if not driver:
        yield Diagnosis("ok", "none: training runs on the CPU")
    elif torch.version.cuda is None:
        text = f"there is NVIDIA's driver {driver}, but torch {torch.__version__} is built without CUDA"
        yield Diagnosis(
            "note", text, "pip install --force-reinstall torch torchvision, from pytorch.org's CUDA index"
        )
    else:
        reason = str(said[0].message).partition("(")[0].strip() if said else "it finds none"
        text = f"NVIDIA's driver {driver} is here, but torch with CUDA {torch.version.cuda} uses no GPU: {reason}"
        yield Diagnosis("note", text, "a newer driver; in a container, start it with --gpus all")


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


def shared_memory(folder: Path) -> Iterator[Diagnosis]:
    if not SHARED_MEMORY.is_dir():
        return  # no Linux: torch has other ways there
    size = shutil.disk_usage(SHARED_MEMORY).total
    text = f"{SHARED_MEMORY} has {size / MEBIBYTE:.0f} MiB"
    if size >= LEAST_SHARED:
        yield Diagnosis("ok", f"{text}, for the images on their way from the loader processes")
    else:
        fix = (
            "start the container with --shm-size=2g (compose: shm_size), or set training_config.workers to 0"
        )
        yield Diagnosis("note", f"{text}, too little for loader processes: they may die of it", fix)


def disk(folder: Path) -> Iterator[Diagnosis]:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        written, read = _disk_speeds(place)
        space = shutil.disk_usage(place).free
    except OSError as error:
        text = f"cannot write to {folder}: {error.strerror or error}"
        yield Diagnosis("fault", text, "make room or set its permissions, or name another folder with -r")
        return
    text = f"{place}: writes {written:.0f} MiB/s, reads {read:.0f} MiB/s, {space / GIBIBYTE:.1f} GiB free"
    if space >= LEAST_SPACE:
        yield Diagnosis("ok", text)
    else:
        yield Diagnosis(
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


def decoder(folder: Path) -> Iterator[Diagnosis]:
    import PIL
    from PIL import features

    speeds = [f"{_decode_speed(kind):.0f} {kind}" for kind in ("JPEG", "PNG")]
    size = "x".join(map(str, PICTURE))
    yield Diagnosis("ok", f"{' and '.join(speeds)} images/s of {size} on one core, Pillow {PIL.__version__}")
    if not features.check_feature("libjpeg_turbo"):
        fix = "pip install --force-reinstall --only-binary :all: pillow"
        yield Diagnosis(
            "note", "this Pillow is built without libjpeg-turbo: JPEG takes several times longer", fix
        )


def _decode_speed(kind: str) -> float:
    """Images/s, as training decodes them: of a soft picture with a little noise, as photographs are."""
    import numpy as np
    from PIL import Image

    from detectkit.data.images import decode, open_image

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
