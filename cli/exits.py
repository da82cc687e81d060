"""How a command ends when it cannot do what was asked: one line on stderr, and an exit code.

0 done, 1 not found or a check failed, 2 wrong usage, 69 something is not available, 78 wrong configuration
(the last two from sysexits.h), 130 interrupted.
"""

import sys
from collections.abc import Callable

from tidemark.errors import BadConfiguration, BadQuery, TidemarkError
from tidemark.service import EXIT_CONFIGURATION, EXIT_UNAVAILABLE

EXIT_NOT_FOUND = 1
EXIT_USAGE = 2
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
    try:
        main()
    except TidemarkError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(next(code for kind, code in _CODES if isinstance(error, kind)))
    except Exception as error:
        from confluent_kafka import KafkaException  # only now: half the commands never need the Kafka client

        if not isinstance(error, KafkaException):
            raise
        sys.stderr.write(f"error: Kafka refused it: {error.args[0].str()}\n")
        sys.exit(EXIT_UNAVAILABLE)
