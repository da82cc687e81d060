"""Processes of this machine, for tests that kill some and look whether others are left."""

import contextlib
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
