"""Generates the message classes from proto/ whenever the package is built or installed in editable mode."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def generate() -> None:
    """Write *_pb2.py and *_pb2.pyi beside the hand-written modules, and the schema with its comments as data."""
    import grpc_tools
    from grpc_tools import protoc

    includes = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    files = [str(path) for path in sorted((ROOT / "proto").rglob("*.proto"))]
    schema = [path for path in files if "spec" in Path(path).parts]
    code = ["protoc", *includes, f"--python_out={ROOT}", f"--pyi_out={ROOT}", *files]
    descriptors = [f"--descriptor_set_out={ROOT / 'detectkit/spec/schema.binpb'}", "--include_source_info"]
    if protoc.main(code) or protoc.main(["protoc", *includes, *descriptors, "--include_imports", *schema]):
        sys.exit("protoc failed on proto/: see the lines above")
    for stub in (ROOT / "detectkit").rglob("*_pb2.pyi"):  # protoc leaves out type arguments
        stub.write_text("# mypy: ignore-errors\n" + stub.read_text())


class BuildWithMessages(build_py):
    def run(self) -> None:
        generate()
        super().run()


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithMessages})
