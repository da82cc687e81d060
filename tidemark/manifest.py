"""The manifest: the one file that names a checkpoint (docs/format.md, section 2).

Segments, dead rows, position, topic identity and collection identity of one partition, as one JSON value.
Positions live only here. It is written last and create-if-absent, so a reader sees a whole checkpoint or the
one before. A manifest of a format that this program does not know is not damage: it is refused by its own
error. Values and their JSON only; `checkpoint.py` reads and publishes them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import xxhash

from tidemark.errors import CorruptCheckpoint, NewerFormat

FORMAT = 3

SegmentKind = Literal["flat", "hnsw"]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the checkpoint: its size and the XXH3 128-bit checksum of its bytes, in hex."""

    bytes: int
    xxh3_128: str


class CodesEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file with a code for each row of a segment, but for `outliers`, rows far beyond the others.

    `error`: mean squared distance of a row from what its code stands for.
    """

    name: str
    file: FileEntry
    quantizer: int
    quantizer_id: str
    error: float
    outliers: int


class SegmentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An immutable segment and which of its rows are dead at the manifest's position.

    kind hnsw: it has a graph, whose searches had the `recall` with the `effort` (efSearch). `codes_file`, if any, has
    the codes of its rows by the generation's quantizer of version `quantizer` and identity `quantizer_id`, with what
    CodesEntry says of them.
    """

    name: str
    kind: SegmentKind
    rows: int
    files: dict[str, FileEntry]
    effort: int = 0
    recall: float = 1.0
    dead_rows: int = 0
    dead_file: str | None = None
    codes_file: str | None = None
    quantizer: int = 0
    quantizer_id: str = ""
    error: float = 0.0
    outliers: int = 0

    @property
    def live_rows(self) -> int:
        return self.rows - self.dead_rows

    @property
    def codes(self) -> CodesEntry | None:
        if self.codes_file is None:
            return None
        file = self.files[self.codes_file]
        return CodesEntry(self.codes_file, file, self.quantizer, self.quantizer_id, self.error, self.outliers)

    def is_coded_by(self, version: int, identity: str) -> bool:
        """Whether its codes are of this very quantizer: in a directory begun again, another may have the number."""
        return self.codes_file is not None and (self.quantizer, self.quantizer_id) == (version, identity)

    def with_codes(self, codes: CodesEntry) -> "SegmentEntry":
        """The same rows with other codes."""
        named = {name: file for name, file in self.files.items() if name != self.codes_file}
        return msgspec.structs.replace(
            self,
            files={**named, codes.name: codes.file},
            codes_file=codes.name,
            quantizer=codes.quantizer,
            quantizer_id=codes.quantizer_id,
            error=codes.error,
            outliers=codes.outliers,
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint of one partition. `position` is the next offset to apply, `digest` sums the live rows'.

    `caught_up_ms` is when the position was last known to hold all of the log; `created_ms` is when this was written.
    """

    collection: str
    generation: str
    partition: int
    version: int
    writer_epoch: int
    writer_nonce: str
    created_ms: int
    caught_up_ms: int
    identity: dict[str, Any]
    cluster_id: str
    topic_id: str
    position: int
    leader_epoch: int
    digest: int
    segments: list[SegmentEntry] = msgspec.field(default_factory=list)
    format: int = FORMAT

    @property
    def live_rows(self) -> int:
        return sum(segment.live_rows for segment in self.segments)


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """Which topic of which cluster; a recreated topic has the same name and another id."""

    cluster_id: str
    topic_id: str
    partitions: int = field(default=0, compare=False)


def encode(manifest: Manifest) -> bytes:
    """One JSON document whose last line is the checksum of the lines before it."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    return body + b'"xxh3_128:' + xxhash.xxh3_128_hexdigest(body).encode() + b'"\n'


def parse(data: bytes, source: str) -> Manifest:
    """Read a manifest of this format or an older one.

    Bytes that nobody wrote raise CorruptCheckpoint; what another version of Tidemark wrote raises NewerFormat.
    """
    lines = data.splitlines(keepends=True)
    body, checksum = b"".join(lines[:-1]), b"".join(lines[-1:])
    if checksum != b'"xxh3_128:' + xxhash.xxh3_128_hexdigest(body).encode() + b'"\n':
        raise CorruptCheckpoint(f"{source}: the manifest's checksum does not match its {len(data)} bytes")
    try:
        return msgspec.convert(_as_this_format(msgspec.json.decode(body), source), Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NewerFormat(_not_known(source, str(error))) from None


def _as_this_format(written: Any, source: str) -> Any:
    """The document as this format would say it."""
    found = written.get("format") if isinstance(written, dict) else None
    if found == FORMAT:
        return written
    if found not in (1, 2):
        raise NewerFormat(_not_known(source, f"it has format {found}, this program reads 1 to {FORMAT}"))
    segments = written.get("segments")
    if isinstance(segments, list):
        segments = [_segment_as_this_format(each) if isinstance(each, dict) else each for each in segments]
    caught_up_ms = written.get("created_ms") if found == 1 else written.get("caught_up_ms")
    return {**written, "format": FORMAT, "caught_up_ms": caught_up_ms, "segments": segments}


def _segment_as_this_format(segment: dict[str, Any]) -> dict[str, Any]:
    """Formats 1 and 2: rows of a segment with lists of its own are without codes; the files of its index stay named."""
    kept = {name: value for name, value in segment.items() if name not in ("k_factor", "reach")}
    if segment.get("kind") != "ivfpq":
        return kept
    return {**kept, "kind": "flat", "effort": 0, "recall": 1.0}


def _not_known(source: str, difference: str) -> str:
    return (
        f"{source}: another version of Tidemark wrote this manifest ({difference}): run that version or a newer one; "
        "nothing was changed"
    )
