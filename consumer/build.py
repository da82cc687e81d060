"""The builder child process: rows of immutable segments in, one finished segment out.

Run as `python -m consumer.build`; one JSON job per line on stdin, one JSON result per line on stdout. It runs
as SCHED_IDLE (nice 19 where that is refused), so searches on the same cores do not notice it, and dies with
its parent. It touches neither Kafka nor manifests: a segment it wrote exists only when the consumer's next
manifest names it. `builder.py` is the parent's side.
"""

import base64
import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Literal

import faiss
import msgspec
import numpy as np

from tidemark import layout
from tidemark.collection import IndexParameters
from tidemark.crash_point import reach
from tidemark.manifest import SegmentEntry
from tidemark.segment import Segment, concatenate, verify_file, write_segment

_PR_SET_PDEATHSIG = 1


class Input(msgspec.Struct, frozen=True):
    """A segment to read, and which of its rows to leave out (bitmap, base64)."""

    entry: SegmentEntry
    dead: str


class Job(msgspec.Struct, frozen=True):
    directory: str
    output: str
    inputs: list[Input]
    dimension: int
    metric: Literal["cosine", "l2", "ip"]
    index: IndexParameters
    threads: int
    donor: SegmentEntry | None = None


class Result(msgspec.Struct, frozen=True):
    """The finished segment; None when no row was left."""

    output: str
    entry: SegmentEntry | None


def pack_dead(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask, bitorder="little").tobytes()).decode()


def run(job: Job) -> Result:
    """Do one job; raises CorruptCheckpoint when an input's bytes are not what its entry says."""
    faiss.omp_set_num_threads(job.threads)
    directory = Path(job.directory)
    parts = []
    for source in job.inputs:
        segment = Segment(directory / source.entry.name, source.entry, job.dimension, job.metric)
        packed = np.frombuffer(base64.b64decode(source.dead), np.uint8)
        dead = np.flatnonzero(np.unpackbits(packed, count=segment.rows, bitorder="little"))
        segment.kill(dead.astype(np.int64))
        parts.append(segment.live_part())
    rows = concatenate(parts)
    reach("build-read")
    if not len(rows):
        return Result(job.output, None)
    donor = _verified_index(directory, job.donor)
    entry = write_segment(directory / job.output, rows, job.metric, job.index, len(rows), donor)
    reach("build-written")
    return Result(job.output, entry)


def _verified_index(directory: Path, donor: SegmentEntry | None) -> Path | None:
    if donor is None:
        return None
    path = directory / donor.name / layout.INDEX
    verify_file(path, donor.files[layout.INDEX])
    return path


def _give_way() -> None:
    """Die with the parent, and run only when nothing else wants the cores."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):
        with contextlib.suppress(OSError):
            os.nice(19)


def main() -> None:
    _give_way()
    if os.getppid() == 1:
        return
    decode = msgspec.json.Decoder(Job).decode
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(run(decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
