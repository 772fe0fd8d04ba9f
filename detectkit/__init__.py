"""detectkit: from a protobuf text spec to a trained, measured object detector.

`load_spec(path)` reads and judges a spec; `load_model(path).predict(images)` detects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load_model", "load_spec"]

if TYPE_CHECKING:
    from detectkit.predict import load_model
    from detectkit.spec import load as load_spec


def __getattr__(name: str) -> Any:
    # Late, because importing torch takes seconds and `detectkit --help` does not need it.
    if name == "load_model":
        from detectkit.predict import load_model

        return load_model
    if name == "load_spec":
        from detectkit.spec import load as load_spec

        return load_spec
    raise AttributeError(f"module 'detectkit' has no attribute {name!r}")
