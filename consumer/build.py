"""The builder child process: rows of immutable segments in, one finished segment out.

Run as `python -m consumer.build PARENT_PID`; one JSON job per line on stdin, one JSON result per line on stdout.
Each job runs in a fork, which gives its memory back, at a lower priority than the consumer's own, which gives way
to searches already; all of it dies with the consumer. It touches neither Kafka nor manifests: a segment it wrote
exists only when the consumer's next manifest names it. `builder.py` is the parent's side.
"""

import base64
import os
import signal
import sys
from pathlib import Path
from typing import Literal

import faiss
import msgspec
import numpy as np

from tidemark import service
from tidemark.collection import IndexParameters
from tidemark.crash_point import reach
from tidemark.errors import TidemarkError
from tidemark.manifest import SegmentEntry
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment


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


class Result(msgspec.Struct, frozen=True):
    """The finished segment; None when no row was left."""

    output: str
    entry: SegmentEntry | None


def pack_dead(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask, bitorder="little").tobytes()).decode()


def _open(job: Job, source: Input) -> Segment:
    segment = Segment(Path(job.directory) / source.entry.name, source.entry, job.dimension, job.metric)
    packed = np.frombuffer(base64.b64decode(source.dead), np.uint8)
    segment.kill(np.flatnonzero(np.unpackbits(packed, count=segment.rows, bitorder="little")))
    return segment


def run(job: Job) -> Result:
    """Do one job; raises CorruptCheckpoint when an input's bytes are not what its entry says."""
    faiss.omp_set_num_threads(job.threads)
    rows = merged([_open(job, source) for source in job.inputs])
    reach("build-read")
    if not len(rows):
        return Result(job.output, None)
    entry = write_segment(Path(job.directory) / job.output, rows, job.metric, job.index, len(rows))
    reach("build-written")
    return Result(job.output, entry)


def _run_apart(job: Job) -> int:
    """Do the job in a process of its own, which gives way and gives its memory back; its exit status."""
    builder = os.getpid()
    pid = os.fork()
    if pid == 0:
        service.die_with_parent(builder, signal.SIGKILL)
        service.give_way(service.BUILD_NICE)
        try:
            result = run(job)
        except (TidemarkError, MemoryError) as error:
            sys.stderr.write(f"error: {error or 'not enough memory'}\n")
            os._exit(service.EXIT_UNAVAILABLE)
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    service.die_with_parent(int(sys.argv[1]), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decode = msgspec.json.Decoder(Job).decode
    for line in sys.stdin.buffer:
        if status := _run_apart(decode(line)):
            sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main()
