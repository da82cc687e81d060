"""The consumer's side of the builder: one child process, one job at a time, never waited for.

A builder that dies (out of memory, killed) is started again with back-off and its job is dropped: the segments
it was reading are still there, so the merge policy asks for them again. `build.py` is the child.
"""

import contextlib
import logging
import os
import selectors
import subprocess
import time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumer.build import Input, Job, Result, pack_dead
from tidemark import service
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import StoreUnavailable
from tidemark.manifest import SegmentEntry
from tidemark.segment import Segment
from tidemark.segment_files import remove_segment_files

logger = logging.getLogger(__name__)

BACKOFF_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Build:
    """A job under way: whose it is, what it reads, and which rows were dead when it was given out."""

    checkpoints: Checkpoints
    inputs: list[str]
    dead_when_read: dict[str, NDArray[np.bool_]]
    output: str
    rows: int
    started: float


class Builder:
    """Start a build with `start`, ask for its end with `finished`; both return at once.

    `problem` says why the last build failed, None after one that did not.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads or len(service.cores())
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._failures = 0
        self.problem: str | None = None
        self._not_before = 0.0
        self.build: Build | None = None

    @property
    def idle(self) -> bool:
        return self.build is None and time.monotonic() >= self._not_before

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(
        self,
        checkpoints: Checkpoints,
        collection: Collection,
        index: IndexParameters,
        inputs: list[Segment],
    ) -> None:
        """Give the child a job over these segments of one partition."""
        dead = {segment.name: segment.dead_mask() for segment in inputs}
        output = checkpoints.new_segment_directory()
        job = Job(
            directory=str(checkpoints.directory),
            output=output.name,
            inputs=[Input(_without_dead_file(s.entry), pack_dead(dead[s.name])) for s in inputs],
            dimension=collection.dimension,
            metric=collection.metric,
            index=index,
            threads=self._threads,
        )
        rows = sum(segment.live_count for segment in inputs)
        names = [segment.name for segment in inputs]
        self.build = Build(checkpoints, names, dead, output.name, rows, time.monotonic())
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._failed("it does not take jobs")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._received = b""
            self._process = subprocess.Popen(
                service.python("consumer.build", str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # FAISS's threads wait for each other asleep, and numpy gets one: spinning ones would take the cores
                # they gave way on.
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def finished(self) -> tuple[Build, Result] | None:
        """The build that has ended and its result; None while it runs, or when it failed."""
        build, process = self.build, self._process
        if build is None or process is None or process.stdout is None:
            return None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if not ready.select(0):
                return None
        piece = os.read(process.stdout.fileno(), 1 << 20)
        if not piece:
            self._failed(f"it ended with code {process.wait()}")
            return None
        self._received += piece
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received, self.build = rest, None
        return build, msgspec.json.decode(line, type=Result)

    def used(self) -> None:
        """What was built is in use: builds do not fail any more."""
        self._failures, self.problem = 0, None

    def _failed(self, why: str) -> None:
        assert self.build is not None
        self.not_used(self.build, why)
        self.stop()

    def not_used(self, build: Build, why: str) -> None:
        """What was built, or half of it, goes; its inputs are still there, and are built again after a while."""
        self._failures += 1
        wait = min(BACKOFF_S_MAX, 0.5 * 2**self._failures)
        self._not_before = time.monotonic() + wait
        self.problem = f"the builder has failed ({why}), the consumer's log says more"
        logger.error("builder failed on %d rows (%s); again in %.0f s", build.rows, why, wait)
        try:
            remove_segment_files(build.checkpoints.directory / build.output)
        except StoreUnavailable as error:
            logger.warning("what a failed build has left is not removed: %s", error)

    def drop(self, checkpoints: Checkpoints) -> None:
        """Forget a build of a partition that is no longer ours; its output is an orphan for the next owner."""
        if self.build is not None and self.build.checkpoints is checkpoints:
            self.stop()

    def stop(self) -> None:
        """End the child; a job under way is dropped."""
        self.build = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):  # what a dead child never read is still buffered
                    if pipe is not None:
                        pipe.close()
            self._process = None


def _without_dead_file(entry: SegmentEntry) -> SegmentEntry:
    files = {name: file for name, file in entry.files.items() if name != entry.dead_file}
    return msgspec.structs.replace(entry, files=files, dead_rows=0, dead_file=None)
