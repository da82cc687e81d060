"""The builder child process: trains quantizers, codes segments, makes one segment of several.

Run as `python -m consumer.build PARENT_PID`; one JSON job per line on stdin, one JSON result per line on stdout.
Each job runs in a fork, which gives its memory back, at a lower priority than the consumer's own, which gives way
to searches already; all of it dies with the consumer. It touches neither Kafka nor manifests: a file it wrote exists
only when the consumer's next manifest names it, but for a quantizer, which is there for all consumers at once.
`builder.py` is the parent's side, `jobs.py` what they tell each other.
"""

import os
import signal
import sys

import msgspec

from consumer.jobs import Code, Coded, Input, Job, Merge, Merged, Result, ToCode, Train, Trained
from consumer.training import train
from tidemark import service
from tidemark.ann.quantizer import Encoded
from tidemark.crash_point import reach
from tidemark.errors import TidemarkError
from tidemark.manifest import CodesEntry
from tidemark.quantizers import Versioned
from tidemark.segment import Segment, merged
from tidemark.segment_files import joined, write_codes, write_segment


def run(job: Job) -> Result:
    """Do one job; raises CorruptCheckpoint when an input's bytes are not what its entry says."""
    match job:
        case Train():
            return _train(job)
        case Code():
            return _code(job)
        case Merge():
            return _merge(job)


def _train(job: Train) -> Trained:
    return train(job.place, job.index, job.drifted)


def _code(job: Code) -> Coded:
    quantizer = Versioned(job.quantizer, job.place.quantizers.read(job.quantizer))
    directory, collection = job.place.directory(job.partition), job.place.collection

    def coded(segment: ToCode) -> CodesEntry:
        path, entry = directory / segment.entry.name, segment.entry
        opened = Segment(path, entry, collection.dimension, collection.metric)
        reach("build-read")
        return write_codes(path, segment.name, opened.vectors, quantizer)

    written = {segment.entry.name: coded(segment) for segment in job.segments}
    reach("build-written")
    return Coded(written)


def _merge(job: Merge) -> Merged:
    segments = [_opened(job, source) for source in job.inputs]
    rows = merged(segments)
    reach("build-read")
    if not len(rows):
        return Merged(None)
    quantizer = encoded = None
    if job.quantizer:
        quantizer = Versioned(job.quantizer, job.place.quantizers.read(job.quantizer))
        encoded = _codes_of(segments, quantizer)
    directory = job.place.directory(job.partition) / job.output
    metric = job.place.collection.metric
    entry = write_segment(directory, rows, metric, job.index, len(rows), quantizer, encoded)
    reach("build-written")
    return Merged(entry)


def _opened(job: Merge, source: Input) -> Segment:
    collection = job.place.collection
    directory = job.place.directory(job.partition) / source.entry.name
    segment = Segment(directory, source.entry, collection.dimension, collection.metric)
    segment.kill(source.dead_rows())
    return segment


def _codes_of(segments: list[Segment], quantizer: Versioned) -> Encoded | None:
    """The codes of the rows that live, one segment after the other; None unless all are of this quantizer."""
    parts = []
    for segment in segments:
        found = segment.codes if segment.entry.is_coded_by(quantizer.version, quantizer.quantizer.identity) else None
        if found is None:
            return None
        lists, codes = found
        alive = ~segment.dead_mask()
        if alive.any():
            parts.append(Encoded(lists[alive], codes[alive], segment.entry.error))
    return joined(parts)


def _run_apart(job: Job) -> int:
    """Do the job in a process of its own, which gives way and gives its memory back; its exit status."""
    builder = os.getpid()
    pid = os.fork()
    if pid == 0:
        service.die_with_parent(builder, signal.SIGKILL)
        service.give_way(service.BUILD_NICE)
        try:
            result = run(job)
        except (TidemarkError, FileNotFoundError, MemoryError) as error:
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
