"""Where `tidemark` starts: before anything else is imported, so that Ctrl-C at any moment is no traceback."""

import signal


def main() -> None:
    """Entry point of the installed command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the imports take a third of a second
    from cli.main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
