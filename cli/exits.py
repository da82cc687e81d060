"""How a command ends when it cannot do what was asked: one line on stderr, and an exit code.

0 done, 1 not found or a check failed, 2 wrong usage, 69 something is not available, 74 standard input or output
cannot be used, 78 wrong configuration (the last three from sysexits.h), 130 interrupted. Never a traceback for
what a person can type, pipe or redirect; one that is shown is a fault of ours.
"""

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TextIO

from tidemark.errors import BadConfiguration, BadQuery, TidemarkError
from tidemark.printable import printable_lines
from tidemark.service import EXIT_CONFIGURATION, EXIT_UNAVAILABLE

EXIT_NOT_FOUND = 1
EXIT_USAGE = 2
EXIT_INPUT_OUTPUT = 74
EXIT_INTERRUPTED = 130


class NotFound(TidemarkError):
    """What was named is not there, or a check of it failed."""


class WrongUsage(TidemarkError):
    """The command cannot be done as it was written: write it differently."""


class Interrupted(TidemarkError):
    """Ctrl-C: what was done by then is in the message."""


_CODES: tuple[tuple[type[TidemarkError], int], ...] = (
    (NotFound, EXIT_NOT_FOUND),
    (WrongUsage, EXIT_USAGE),
    (BadQuery, EXIT_USAGE),
    (Interrupted, EXIT_INTERRUPTED),
    (BadConfiguration, EXIT_CONFIGURATION),
    (TidemarkError, EXIT_UNAVAILABLE),
)


def run(main: Callable[[], None]) -> None:
    """Run the command line; an error an operator can act on is a message and an exit code."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal of another encoding cannot show
    sys.exit(_flushed(_code(main)))


def _code(main: Callable[[], None]) -> int | str | None:
    try:
        main()
    except SystemExit as ended:
        return ended.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except TidemarkError as error:
        return _said(str(error), next(code for kind, code in _CODES if isinstance(error, kind)))
    except OSError as error:
        return _of_the_system(error)
    except Exception as error:
        from confluent_kafka import KafkaException  # only now: half the commands never need the Kafka client

        if not isinstance(error, KafkaException):
            raise
        return _said(f"Kafka refused it: {error.args[0].str()}", EXIT_UNAVAILABLE)
    return 0


def _of_the_system(error: OSError) -> int:
    """A file or directory that cannot be used, or our output."""
    if isinstance(error, BrokenPipeError):  # whoever read has read enough, as `head` does
        _forget(sys.stdout)
        return EXIT_INPUT_OUTPUT
    if error.filename is None and isinstance(error, FileNotFoundError):
        return _said("the working directory is not there any more: change to another one", EXIT_UNAVAILABLE)
    if error.filename is None:
        _forget(sys.stdout)
        return _said(f"standard input or output: {error.strerror or error}", EXIT_INPUT_OUTPUT)
    return _said(f"{os.fsdecode(error.filename)}: {error.strerror}", EXIT_UNAVAILABLE)


def _flushed(code: int | str | None) -> int | str | None:
    """Write out what waits, so that a full disk is said and not lost; what failed before stays the reason."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
        return code or EXIT_INPUT_OUTPUT
    except OSError as error:
        _forget(sys.stdout)
        return code or _said(f"standard output: {error.strerror}", EXIT_INPUT_OUTPUT)
    return code


def _said(message: str, code: int) -> int:
    try:
        sys.stderr.write(f"error: {printable_lines(message)}\n")
        sys.stderr.flush()
    except OSError:  # the exit code says it too
        _forget(sys.stderr)
    return code


def _forget(stream: TextIO) -> None:
    """Let what waits in it go nowhere: Python would try it again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _open_what_is_closed() -> None:
    """Give 0, 1 and 2 to streams when the shell closed them: a file opened later would get the number.

    Reading and writing fail as they would on a closed one.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the least free number
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
