"""The `detectkit` command: it runs a command line (`detectkit.commands.tree`), and turns an error into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detectkit import console
from detectkit.commands.tree import parse
from detectkit.errors import DetectkitError, OutputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code (see `detectkit.errors`). `--help` and `--version` leave with SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console.show_all()
    try:
        return _run(arguments)
    except DetectkitError as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted")
        return 130
    except BrokenPipeError:  # `detectkit explain | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        console.fail(f"{error.filename or 'system'}: {error.strerror or error}")
        return OutputError.exit_code
    except RuntimeError as error:
        if not _is_out_of_gpu_memory(error):
            raise
        console.fail("out of GPU memory: lower training_config.batch_size_per_gpu (or -b)")
        return DetectkitError.exit_code


def _is_out_of_gpu_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")  # not imported here: it takes seconds
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _run(arguments: list[str]) -> int:
    module, args = parse(arguments)
    console.set_up(verbose=args.verbose, log_file=args.log_file)
    for line in args.ignored:
        console.log.warning(line)
    module.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
