"""Where `tidemark` starts: before anything else is imported, so that Ctrl-C at any moment is no traceback."""

import os
import signal


def main() -> None:
    """Entry point of the installed command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the imports take a third of a second
    # As it would be without a handler; for process 1, in a container without an init, there is no such default.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    from cli.main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
