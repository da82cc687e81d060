"""The HTTP workers of a replica: child processes that share its socket, its segments and its memory.

A worker that ends is started again, with back-off; all of them die with this process.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping

logger = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_S_MAX = 0.2, 10.0
STEADY_S = 30.0
# uvicorn gives requests under way 3 s (worker.py).
STOP_S = 6.0


class Workers:
    """`turn` now and then; `stop` lets requests under way end."""

    def __init__(self, count: int, arguments: list[str], listener: int, environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", "api.worker", *arguments]
        self._listener = listener
        self._environment = {**os.environ, **environment}
        self._workers: list[_Worker] = [_Worker() for _ in range(count)]

    def turn(self) -> None:
        """Start what is not running."""
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                worker.ended()
            if worker.process is None and time.monotonic() >= worker.not_before:
                worker.started_at = time.monotonic()
                worker.process = subprocess.Popen(
                    self._command, pass_fds=[self._listener], env=self._environment, process_group=0
                )

    def stop(self) -> None:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Worker:
    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = self.not_before = 0.0
        self._backoff_s = BACKOFF_S

    def ended(self) -> None:
        assert self.process is not None
        now = time.monotonic()
        if now - self.started_at > STEADY_S:
            self._backoff_s = BACKOFF_S
        logger.error("an HTTP worker ended with code %s; again in %.1f s", self.process.returncode, self._backoff_s)
        self.process, self.not_before = None, now + self._backoff_s
        self._backoff_s = min(BACKOFF_S_MAX, 2 * self._backoff_s)
