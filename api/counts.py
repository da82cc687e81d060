"""The directory in which the HTTP workers of a replica count together, and the file of each.

Its owner holds a lock on the directory for as long as it lives. SIGKILL leaves a directory behind, and the next replica
of the same user on the machine removes those whose lock nobody holds. A worker has a number, and the one that is
started in its place goes on in its file: no count is lost, and no file is left for each worker that ever was.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "tidemark-counts-"  # "tidemark-metrics-" was that of replicas that did not lock theirs


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A new directory, removed at the end; those left behind are removed first."""
    remove_left_behind()
    path, lock = _locked()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):  # taken for one left behind, before it was locked
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def remove_left_behind() -> None:
    """Remove the directories of replicas of ours that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or removed meanwhile
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
