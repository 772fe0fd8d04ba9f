"""Files in object stores and on web servers, by their address (s3://bucket/part-000), through fsspec.

Only the stores of `PROTOCOLS`, and no chains of them (`a::b`): fsspec also knows protocols that run code, unpack archives
or ask services. And only addresses of a spec that the user has named: one that lies in a model or in a folder of results
may come from anybody, and must not make this machine connect to anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import IO, Any, Self, TypeVar

from detectkit.errors import DataError

LOCAL = "file://"
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "https")
LONGEST = 300  # characters of a store's own words

Result = TypeVar("Result")
_allowed: set[str] = set()  # addresses and patterns of the user's own specs, and what was found by them


def is_remote(path: str) -> bool:
    """Whether a path is an address; file:// is a local path."""
    return "://" in path and not path.startswith(LOCAL)


def allow(paths: Iterable[str]) -> None:
    """From now on the addresses among the paths may be opened: the user has named the spec that has them."""
    _allowed.update(path for path in paths if is_remote(path))


def find(pattern: str) -> dict[str, dict[str, Any]]:
    """The addresses that match a pattern, and what the store tells of each.

    Raises:
        DataError: not allowed, or the store cannot be asked.
    """
    _require_allowed(pattern)

    def ask() -> dict[str, dict[str, Any]]:
        store, name = _store(pattern)
        return {store.unstrip_protocol(path): info for path, info in store.glob(name, detail=True).items()}

    found = _asked("cannot list", pattern, ask)
    allow(found)
    return found


def size(address: str) -> int:
    """Bytes of a file. Raises DataError: not allowed, or it cannot be read."""
    _require_allowed(address)

    def ask() -> int:
        store, name = _store(address)
        found = store.size(name)
        if found is None:
            raise OSError("the store does not tell its size")
        return int(found)

    return _asked("cannot read", address, ask)


class RemoteFile:
    """An open file of a store. Reading and seeking ask the store, and raise DataError where it fails."""

    def __init__(self, address: str, stream: IO[bytes]):
        self._address, self._stream = address, stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        return _asked("cannot read", self._address, lambda: self._stream.read(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return _asked("cannot read", self._address, lambda: self._stream.seek(offset, whence))


def open_file(address: str) -> RemoteFile:
    """A file to read and seek in. Raises DataError: not allowed, or it cannot be opened."""
    _require_allowed(address)

    def ask() -> RemoteFile:
        store, name = _store(address)
        return RemoteFile(address, store.open(name, "rb"))

    return _asked("cannot read", address, ask)


def read_range(address: str, offset: int, length: int) -> bytes:
    """Bytes of a file whose `size` was allowed to be asked, maybe in another process. Raises DataError."""

    def ask() -> bytes:
        store, name = _store(address)
        content: bytes = store.cat_file(name, start=offset, end=offset + length)
        return content

    return _asked("cannot read", address, ask)


def _require_allowed(address: str) -> None:
    _require_known(address)
    if address not in _allowed and address.removesuffix(".index") not in _allowed:
        raise DataError(
            f"{address} is not opened: it is named in a model or in a folder of results, which may come from anybody; give a"
            " spec of your own that names it (-e)"
        )


def _require_known(address: str) -> None:
    protocol = address.split("://", 1)[0]
    if protocol not in PROTOCOLS or "::" in address:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise DataError(f"{address} is not opened: addresses begin with {known}, without chains of them (::)")


def _store(address: str) -> tuple[Any, str]:
    _require_known(address)

    import fsspec  # not before there is an address

    store, name = fsspec.url_to_fs(address)
    return store, name


def _asked(what: str, address: str, ask: Callable[[], Result]) -> Result:
    """Call `ask`; what goes wrong in a store, of as many kinds as there are stores, becomes one DataError."""
    try:
        return ask()
    except FileNotFoundError as error:
        raise DataError(f"{what} {address}: there is no such file") from error
    except Exception as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise DataError(f"{what} {address}: {words[:LONGEST]}") from error
