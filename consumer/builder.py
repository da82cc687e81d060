"""The consumer's side of the builder: one child process, one job at a time, never waited for.

A builder that dies (out of memory, killed) is started again with back-off and its job is dropped: what it was reading
is still there, so the job is wanted again. `build.py` is the child, `jobs.py` what they tell each other.
"""

import contextlib
import logging
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumer.jobs import Code, Input, Job, Merge, Place, Result, ToCode, Train, without_dead_file
from consumer.quantizing import Known
from tidemark import files, service
from tidemark.checkpoint import Checkpoints
from tidemark.collection import IndexParameters
from tidemark.errors import StoreUnavailable
from tidemark.segment import Segment
from tidemark.segment_files import remove_segment_files

logger = logging.getLogger(__name__)

BACKOFF_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Training:
    """A look whether a generation wants a quantizer, and its training; `rows` of this process are in it.

    `drifted`: the version known then as one whose codes got worse, or 0.
    """

    known: Known
    rows: int
    drifted: int
    started: float = field(default_factory=time.monotonic)
    checkpoints: None = None

    def clear(self) -> None:
        """Nothing is left of one that failed."""


@dataclass(frozen=True, slots=True)
class Coding:
    """Codes for segments of one partition: by segment the name of the file that gets them."""

    checkpoints: Checkpoints
    known: Known
    names: dict[str, str]
    rows: int
    started: float = field(default_factory=time.monotonic)

    def clear(self) -> None:
        """Remove what one that failed has left."""
        for segment, name in self.names.items():
            files.remove(self.checkpoints.directory / segment / name)


@dataclass(frozen=True, slots=True)
class Merging:
    """One segment of several: what it reads, and which rows were dead when the job was given out."""

    checkpoints: Checkpoints
    known: Known | None
    inputs: list[str]
    dead_when_read: dict[str, NDArray[np.bool_]]
    output: str
    rows: int
    started: float = field(default_factory=time.monotonic)

    def clear(self) -> None:
        """Remove what one that failed has left."""
        remove_segment_files(self.checkpoints.directory / self.output)


Build = Training | Coding | Merging


class Builder:
    """Start a job with `train`, `code` or `merge`, ask for its end with `finished`; all return at once.

    `problem` says why the last job failed, None after one whose result is used.
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

    def train(self, known: Known, own_rows: int) -> None:
        """Have it looked whether a generation wants a quantizer; `own_rows` live in segments of this process."""
        self._start(Training(known, own_rows, known.drifted), Train(known.place, known.index, known.drifted))

    def code(self, checkpoints: Checkpoints, known: Known, segments: Sequence[Segment]) -> None:
        """Have codes of the newest version written beside these segments of one partition."""
        names = {segment.name: checkpoints.new_codes_name(segment.name, known.version) for segment in segments}
        to_code = [ToCode(without_dead_file(s.entry), names[s.name]) for s in segments]
        job = Code(known.place, checkpoints.partition, known.version, to_code)
        self._start(Coding(checkpoints, known, names, sum(s.entry.rows for s in segments)), job)

    def merge(
        self, checkpoints: Checkpoints, index: IndexParameters, known: Known | None, inputs: Sequence[Segment]
    ) -> None:
        """Have one segment made of these of one partition."""
        dead = {segment.name: segment.dead_mask() for segment in inputs}
        output = checkpoints.new_segment_directory().name
        job = Merge(
            place=Place(str(checkpoints.root), checkpoints.collection, checkpoints.generation),
            partition=checkpoints.partition,
            output=output,
            inputs=[Input.of(without_dead_file(s.entry), dead[s.name]) for s in inputs],
            index=index,
            quantizer=known.version if known else 0,
        )
        rows = sum(int(np.count_nonzero(~mask)) for mask in dead.values())
        names = [segment.name for segment in inputs]
        self._start(Merging(checkpoints, known, names, dead, output, rows), job)

    def _start(self, build: Build, job: Job) -> None:
        self.build = build
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
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(self._threads),
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        return self._process

    def finished(self) -> tuple[Build, Result] | None:
        """The job that has ended and its result; None while it runs, or when it failed."""
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
        """What was built, or half of it, goes; what it was built from is still there, and is built again after a while.

        The quantizer is read again: it may be what could not be read.
        """
        self._failures += 1
        wait = min(BACKOFF_S_MAX, 0.5 * 2**self._failures)
        self._not_before = time.monotonic() + wait
        self.problem = f"the builder has failed ({why}), the consumer's log says more"
        logger.error("builder failed on %d rows (%s); again in %.0f s", build.rows, why, wait)
        if build.known is not None:
            build.known.look_again()
        try:
            build.clear()
        except StoreUnavailable as error:
            logger.warning("what a failed build has left is not removed: %s", error)

    def drop(self, checkpoints: Checkpoints) -> None:
        """Forget a job of a partition that is no longer ours; its output is an orphan for the next owner."""
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
