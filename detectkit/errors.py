"""The error tree. Every error a user can cause is one of these; `detectkit.cli` turns it into an exit code.

DetectkitError      1   anything of ours
├── UsageError      2   wrong command line
├── SpecError       3   the spec file cannot be read or breaks a rule
├── DataError       4   images, labels or records
├── ModelError      5   a model file or weights
├── OutputError     6   results cannot be written
└── Interrupted   130   stopped by the user, with everything saved
"""


class DetectkitError(Exception):
    """One clear sentence: what is wrong, in which file (and line), and what to change."""

    exit_code = 1


class UsageError(DetectkitError):
    exit_code = 2


class SpecError(DetectkitError):
    exit_code = 3


class DataError(DetectkitError):
    exit_code = 4


class ModelError(DetectkitError):
    exit_code = 5


class OutputError(DetectkitError):
    exit_code = 6


class Interrupted(DetectkitError):
    exit_code = 130
