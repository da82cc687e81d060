"""Durable files in a directory: fsync, create-if-absent by link, atomic replace, and the directory lock.

Invariant: a name appears only when the bytes under it are durable. A failed fsync is never repeated on the
same file (the kernel may already have dropped the pages): it raises StoreUnavailable and the process makes
no further checkpoint. Knows nothing of what the files mean.
"""

import fcntl
import os
import secrets
from pathlib import Path

from tidemark.crash_point import reach
from tidemark.errors import StoreUnavailable


def fsync_file(path: Path) -> None:
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise StoreUnavailable(f"fsync of {path} failed: {error}; restart when the disk is well") from error
    finally:
        os.close(descriptor)


def create(path: Path, data: bytes) -> bool:
    """Create a file durably under a name that nobody has; False when the name is taken."""
    temporary = _write_temporary(path, data)
    reach("temporary-written")
    try:
        os.link(temporary, path)  # unlike rename, link refuses to overwrite
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    reach("linked")
    fsync_directory(path.parent)
    return True


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another, atomically and durably."""
    os.replace(_write_temporary(path, data), path)
    fsync_directory(path.parent)


def _write_temporary(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


class DirectoryLock:
    """An exclusive lock on a directory, held until closed or until the process ends."""

    def __init__(self, directory: Path, holder: str) -> None:
        path = directory / ".lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+")
        except OSError as error:
            raise StoreUnavailable(
                f"{directory} is not writable for uid {os.geteuid()} ({error.strerror}): "
                "make it that user's, or choose another directory"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            other = self._file.read().strip() or "another process"
            self._file.close()
            raise StoreUnavailable(f"{directory} is in use by {other}: stop it, or use another directory") from None
        self._file.truncate(0)
        self._file.write(f"{holder} (pid {os.getpid()})")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
