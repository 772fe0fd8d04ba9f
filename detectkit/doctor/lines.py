"""What a check finds, and what there is to say of an error."""

from __future__ import annotations

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """What a check has found."""

    # "ok"; "note": a training works, something else does not, or is slow; "fault": no training works
    grade: str
    text: str
    fix: str = ""  # of a note or a fault


def first_line(error: Exception) -> str:
    """What an error says, without what follows in further lines."""
    return (str(error).strip().splitlines() or ["it gives no reason"])[0]
