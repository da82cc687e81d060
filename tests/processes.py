"""Processes of this machine, for tests that kill some and look whether others are left."""

import contextlib
import os
from pathlib import Path


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that its new parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def children(pid: int) -> set[int]:
    """The processes it started, whichever of its threads did."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in path.read_text().split()}
    return found


def below(pid: int) -> set[int]:
    """Every process that descends from it."""
    found = children(pid)
    return found.union(*(below(child) for child in found))


def listeners(port: int) -> int:
    """How many sockets listen on a port of IPv4."""
    return len(_sockets(port, state="0A"))


def connections(port: int, pid: int) -> int:
    """How many connections to a port of IPv4 a process has accepted."""
    owned = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return len(owned & _sockets(port, state="01"))


def _sockets(port: int, state: str) -> set[str]:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = [line for line in lines if line[3] == state and int(line[1].rpartition(":")[2], 16) == port]
    return {f"socket:[{line[9]}]" for line in found}
