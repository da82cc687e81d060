"""Child processes of `tidemark up`: started, watched, started again with back-off, stopped with a deadline.

Children get a session of their own, so a terminal's Ctrl-C reaches only us, and the kernel ends them with us
also when we are killed. Start them from the main thread: the kernel watches the thread that forked.
Knows nothing of the local broker: the container image, whose `tidemark sample` has a child, holds no Java.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tidemark import service
from tidemark.errors import TidemarkError

RESTART_S_FIRST, RESTART_S_MAX = 0.5, 30.0
# Having run this long, it is well again: the back-off starts anew.
STEADY_S = 60.0


class Child:
    """A python module as a process; its output goes to a log file."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # The wrapper covers the second or so until the service has asked for its parent's death itself.
        wrapper = [sys.executable, "-I", str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid())]
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                [*wrapper, *service.python(*self._arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    @property
    def pid(self) -> int | None:
        """The process while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """As subprocess gives it, None while it runs and before it was started."""
        return self._process.poll() if self._process else None

    def last_lines(self, count: int = 6) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-count:])

    def stop(self, deadline_s: float) -> bool:
        """SIGTERM, and SIGKILL after the deadline; False when that was needed."""
        if self._process is None or self._process.poll() is not None:
            return True
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def kill(self) -> None:
        """At once; may be called from a signal handler."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)


class Service(Protocol):
    """What can be watched: a child process, or the local broker."""

    name: str
    log_path: Path

    @property
    def pid(self) -> int | None: ...
    @property
    def exit_code(self) -> int | None: ...
    def start(self) -> None: ...


class Watch:
    """Starts one service again when it has ended; the waits double while it keeps ending."""

    def __init__(self, service: Service, say: Callable[[str], None]) -> None:
        self.service = service
        self.ends = 0
        self._say = say
        self._wait = RESTART_S_FIRST
        self._started = time.monotonic()
        self._again_at: float | None = None

    def turn(self) -> bool:
        """To be called often; True when it was started again just now."""
        if self.service.pid is not None:
            return False
        if self._again_at is None:
            self._schedule(_why(self.service.exit_code))
            return False
        if time.monotonic() < self._again_at:
            return False
        try:
            self.service.start()
        except TidemarkError as error:
            self._schedule(f"did not start: {str(error).splitlines()[0]}")
            return False
        self._started, self._again_at = time.monotonic(), None
        self._say(f"{self.service.name} is started again (pid {self.service.pid})")
        return True

    def _schedule(self, why: str) -> None:
        self.ends += 1
        if time.monotonic() - self._started > STEADY_S:
            self._wait = RESTART_S_FIRST
        self._say(
            f"{self.service.name} {why} (its log: {self.service.log_path}); starting it again in {self._wait:g} s"
        )
        self._again_at = time.monotonic() + self._wait
        self._wait = min(RESTART_S_MAX, 2 * self._wait)


def _why(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
