"""Services as process 1 of a PID namespace of their own, as in a container: without a container engine.

Process 1 is special: a signal that it has no handler for is ignored, and its children see 1 as their parent.
"""

import functools
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes import children
from tests.services import Service, wait_until

# The namespace, with all that runs in it, ends when `unshare` is killed.
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")


@functools.cache
def unshare() -> Sequence[str]:
    """The words that make the command after them process 1; skips the test where that is not permitted."""
    said = b""
    for command in (_UNSHARE, (*_UNSHARE, "--user", "--map-root-user")):
        try:
            found = subprocess.run([*command, "true"], stderr=subprocess.PIPE, timeout=20)
        except FileNotFoundError:
            pytest.skip("there is no `unshare`, which makes a service process 1")
        if found.returncode == 0:
            return command
        said = found.stderr
    pytest.skip(f"this machine does not permit a PID namespace: {said.decode(errors='replace').strip()}")


def pid_outside(service: Service) -> int:
    """The process that is 1 inside, by its number here."""
    found: set[int] = wait_until(lambda: children(service.process.pid), 10, "process 1 of the namespace")
    return found.pop()


def wait_until_it_heeds(pid: int, number: int = signal.SIGTERM) -> None:
    """Until the process has a handler for the signal: process 1 gets no other one."""

    def heeds() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        return bool(caught >> (number - 1) & 1)

    wait_until(heeds, 20, f"a handler for signal {number}")
