"""Child processes of `tidemark up`: started, watched, started again with back-off, stopped in order.

Children get a session of their own, so a terminal's Ctrl-C reaches only us, and die with us also when we are
killed (`--dies-with-parent`). Start them from the main thread: the kernel watches the thread that forked.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESTART_S_FIRST, RESTART_S_MAX = 0.5, 30.0
STEADY_S = 60.0
STOP_S = 20.0


class Child:
    """One service, by module name; its output goes to a log file."""

    def __init__(self, name: str, config: Path, log_path: Path, say: Callable[[str], None]) -> None:
        self.name = name
        self.log_path = log_path
        self._command = [sys.executable, "-m", name, "--config", str(config), "--dies-with-parent"]
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._wait = RESTART_S_FIRST
        self._again_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._started = time.monotonic()
        self._again_at = None

    def ended(self) -> int | None:
        return self._process.poll() if self._process else None

    def watch(self) -> bool:
        """Start again what has died, after its back-off; True when it was started again now."""
        if self._again_at is not None:
            if time.monotonic() < self._again_at:
                return False
            self.start()
            self._say(f"{self.name} is started again (pid {self.pid})")
            return True
        code = self.ended()
        if code is None:
            return False
        if time.monotonic() - self._started > STEADY_S:
            self._wait = RESTART_S_FIRST
        why = f"signal {-code}" if code < 0 else f"code {code}"
        self._say(f"{self.name} ended with {why} (see {self.log_path}); again in {self._wait:g} s")
        self._again_at = time.monotonic() + self._wait
        self._wait = min(RESTART_S_MAX, 2 * self._wait)
        return False

    def last_lines(self, count: int = 6) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-count:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the deadline."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._say(f"{self.name} did not stop within {STOP_S:.0f} s: killed (its checkpoint is safe)")
            self._process.kill()
            self._process.wait()
