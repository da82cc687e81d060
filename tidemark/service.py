"""What every process of Tidemark does at its edges: logging, stop signals, exit codes, die with a parent.

Signal handlers only set a flag: an exception from one would be raised inside the Kafka client and lose a batch.
"""

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Literal

from tidemark.errors import BadConfiguration, TidemarkError
from tidemark.printable import printable_lines

# sysexits.h: 78 is a configuration error, 70 an internal one; 69 a service that is not available.
EXIT_CONFIGURATION = 78
EXIT_UNAVAILABLE = 69
EXIT_BUG = 1

_PR_SET_PDEATHSIG = 1
FILES_WANTED = 65_536
# Where cores are short, searches go first: five more is a third of the share.
FOLLOWER_NICE, CONSUMER_NICE, BUILD_NICE = 5, 5, 10


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def python(module: str, *arguments: str) -> list[str]:
    """The command of one of our own modules as a process.

    With -P, because `python -m` alone searches the working directory first: a file of the user's there that is
    named as a module of ours, or of Python's, would be run instead.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def log_to_stderr(log_format: Literal["text", "json"]) -> None:
    output = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    output.setFormatter(_JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)


def end_on_signals() -> None:
    """From now on, SIGTERM or SIGINT ends this process at once, with the code a shell gives for it.

    A service calls it before its imports, because the kernel drops a signal for which process 1 has no handler. A
    start has nothing to bring to an end in order: what it writes has its name only once it is whole.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))


def stop_on_signals() -> threading.Event:
    """An event set by SIGTERM or SIGINT; a second signal ends the process at once."""
    stopping = threading.Event()
    _set_on_signals(stopping)
    return stopping


def _set_on_signals(stopping: threading.Event) -> None:
    def on_signal(number: int, _: object) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


class Stopping:
    """Whether SIGTERM or SIGINT has come: a loop asks once a turn by calling this.

    The first question begins it, until then `end_on_signals` holds: a start may wait for brokers, and is not waited
    for. `come` is the event to wait for.
    """

    def __init__(self) -> None:
        self.come = threading.Event()
        self._asked = False

    def __call__(self) -> bool:
        if not self._asked:
            self._asked = True
            _set_on_signals(self.come)
        return self.come.is_set()


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, also by SIGKILL; ends it when that has died.

    The parent tells its own pid, because every pid can be the right one: that of a container's service is 1.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def allow_many_files() -> None:
    """Raise the limit of open files: tails, segments and partitions hold a descriptor or two each, connections more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, FILES_WANTED)), hard))


def collect_garbage() -> None:
    """From now on, but never again through what was imported until now."""
    gc.freeze()
    gc.enable()


def give_way(nice: int) -> None:
    """Let who is more urgent go first: the priority of the calling thread and of those it starts."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def cores(cpus: str = "") -> set[int]:
    """The cores named as in `0-3,6`, or all that the calling thread may run on; raises BadConfiguration."""
    ours = os.sched_getaffinity(0)
    if not cpus:
        return ours
    ends = [(first, last or first) for first, _, last in (part.partition("-") for part in cpus.split(","))]
    wanted = {number for first, last in ends for number in range(int(first), int(last) + 1)}
    if missing := wanted - ours:
        raise BadConfiguration(f"cpus {cpus!r}: this process may not run on {sorted(missing)}, only on {sorted(ours)}")
    return wanted


def run_on(cpus: str) -> None:
    """Keep the calling thread, and the threads and processes it starts, on these cores."""
    os.sched_setaffinity(0, cores(cpus))


def run(main: Callable[[], None]) -> None:
    """Run a command, then end the process; an error an operator can act on is one line on stderr and an exit code.

    What must be closed was closed by `main`. Python's own way out would wait for pools that still read files, and
    take the interpreter down under threads that are inside a Kafka client: seen to end with SIGSEGV.
    """
    code = _code_of(main)
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader has gone
            output.flush()
    os._exit(code)


def _code_of(main: Callable[[], None]) -> int:
    try:
        main()
    except BadConfiguration as error:
        return _say(error, EXIT_CONFIGURATION)
    except TidemarkError as error:
        return _say(error, EXIT_UNAVAILABLE)
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    return 0


def _say(error: TidemarkError, code: int) -> int:
    sys.stderr.write(f"error: {printable_lines(str(error))}\n")
    return code
