"""Time several models side by side, in turns, each in what it would be deployed with on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detectkit.commands.options import add_device_arguments, choose_device
from detectkit.console import progress, say, table
from detectkit.errors import UsageError
from detectkit.files import atomic_write, check_writable, make_directory, short_names

if TYPE_CHECKING:
    from detectkit.runtimes import Network

JSON = "latency.json"


class Timed(NamedTuple):
    """One model."""

    path: Path
    kind: str  # see `runtimes.Network`
    runtime: str
    seconds: float  # an image
    parameters: int | None  # None: its file does not tell
    gmacs: float | None  # 1e9 multiply-accumulates an image
    megabytes: float  # 2^20 bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="models, ONNX files, engines")
    parser.add_argument(
        "--batch_size", type=int, default=1, metavar="N", help="images that go through a network at once (1)"
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help=f"where {JSON} goes")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    names = short_names(args.models)
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: must be 1 or more")
    if args.results_dir:
        check_writable(args.results_dir / JSON)

    import torch

    device = choose_device(args)
    machine = _machine(device)
    timed = _time(args, device)
    first = timed[0]
    rows = [
        [
            name,
            item.runtime,
            f"{1000 * item.seconds:.2f}",
            f"{first.seconds / item.seconds:.2f}",
            "-" if item.parameters is None else f"{item.parameters:,}",
            "-" if item.gmacs is None else f"{item.gmacs:.3f}",
            f"{item.megabytes:.2f}",
        ]
        for name, item in zip(names, timed, strict=True)
    ]
    threads = torch.get_num_threads()
    table(
        ["model", "runtime", "ms an image", "faster", "parameters", "GMACs", "MiB"],
        rows,
        title=f"the networks alone, {_count(args.batch_size, 'image')} at once, on {machine}, {_count(threads, 'thread')}",
    )
    if args.results_dir:
        content = {
            "batch_size": args.batch_size,
            "machine": machine,
            "threads": threads,
            "models": [_content(item) for item in timed],
        }
        folder = make_directory(args.results_dir)
        with atomic_write(folder / JSON) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        say(f"wrote {folder / JSON}")
    say(f"next: detectkit compare -e SPEC {' '.join(map(str, args.models))}, for what each of them finds")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _time(args: argparse.Namespace, device: Any) -> list[Timed]:
    from detectkit import runtimes
    from detectkit.deploy.latency import deployed, latencies

    paths, batch_size = args.models, args.batch_size
    networks = [
        runtimes.load(path, device) for path in paths
    ]  # a broken one is known before the first is run
    shown = progress(networks, total=len(networks), label="loading", unit="networks")
    ready = [deployed(network, device, batch_size=batch_size) for network in shown]
    seconds = latencies([item.run for item in ready])
    return [
        Timed(
            path=network.file,
            kind=network.kind,
            runtime=item.runtime,
            seconds=time / batch_size,
            parameters=_parameters(network),
            gmacs=_gmacs(network),
            megabytes=network.file.stat().st_size / 2**20,
        )
        for network, item, time in zip(networks, ready, seconds, strict=True)
    ]


def _parameters(network: Network) -> int | None:
    from detectkit.model.detector import Detector, parameters

    return parameters(network.forward) if isinstance(network.forward, Detector) else None


def _gmacs(network: Network) -> float | None:
    from detectkit.deploy.export import image_size
    from detectkit.model.detector import Detector, gmacs

    if not isinstance(network.forward, Detector):
        return None
    return gmacs(network.forward, *image_size(network.spec))


def _machine(device: Any) -> str:
    """The name of the GPU or the CPU that the networks run on."""
    import torch

    from detectkit.versions import processor

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def _content(item: Timed) -> dict[str, Any]:
    return {
        "model": str(item.path),
        "kind": item.kind,
        "runtime": item.runtime,
        "seconds_per_image": item.seconds,
        "parameters": item.parameters,
        "gmacs": item.gmacs,
        "size_mib": item.megabytes,
    }
