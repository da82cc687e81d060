"""The manifest: what was written is read back, and nothing else is."""

from dataclasses import replace

import msgspec
import pytest
import xxhash

from tidemark.errors import CorruptCheckpoint, NewerFormat
from tidemark.manifest import FORMAT, CodesEntry, FileEntry, Manifest, SegmentEntry, TopicIdentity, encode, parse

SEGMENT = SegmentEntry(
    name="seg-000001-000001",
    kind="hnsw",
    rows=10,
    effort=5,
    recall=0.98,
    files={"vectors.f32": FileEntry(40, "ab" * 16)},
    dead_rows=3,
    dead_file="dead-0000000002.bits",
)
CODES = CodesEntry("codes-000007.u8", FileEntry(80, "cd" * 16), 7, "12" * 16, 0.25, 1)
MANIFEST = Manifest(
    collection="docs",
    generation="g000001",
    partition=2,
    version=7,
    writer_epoch=3,
    writer_nonce="00ff",
    created_ms=1_700_000_000_000,
    caught_up_ms=1_600_000_000_000,
    identity={"topic": 'dö"cs\n', "dimension": 4, "metric": "l2", "id_format": "utf8"},
    cluster_id="c",
    topic_id="t",
    position=2**62,
    leader_epoch=-1,
    digest=2**64 - 1,
    segments=[SEGMENT.with_codes(CODES)],
)


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert parse(encode(MANIFEST), "m") == MANIFEST
    assert MANIFEST.live_rows == SEGMENT.live_rows == 7


def test_every_flipped_bit_of_a_manifest_is_refused() -> None:
    data = encode(MANIFEST)
    for at in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            with pytest.raises(CorruptCheckpoint):
                parse(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], "m")


def test_every_truncation_of_a_manifest_is_refused() -> None:
    data = encode(MANIFEST)
    for length in range(len(data)):
        with pytest.raises(CorruptCheckpoint):
            parse(data[:length], "m")


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"\0" * 4096, encode(MANIFEST) + b"\n", encode(MANIFEST) * 2])
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        parse(data, "m")


def _sealed(document: object) -> bytes:
    """A manifest with a right checksum, whatever is in it."""
    body = msgspec.json.encode(document) + b"\n"
    return body + b'"xxh3_128:' + xxhash.xxh3_128_hexdigest(body).encode() + b'"\n'


def _older(number: int, **changes: object) -> dict[str, object]:
    """The manifest as format 1 or 2 had it, with changes to its segment."""
    segment = {name: value for name, value in msgspec.to_builtins(SEGMENT).items() if "codes" not in name}
    del segment["quantizer"], segment["error"], segment["outliers"]
    segment |= {"k_factor": 8, "reach": 0.5, **changes}
    return msgspec.to_builtins(MANIFEST) | {"format": number, "segments": [segment]}


def test_a_manifest_of_format_1_was_caught_up_when_it_was_created() -> None:
    document = _older(1)
    del document["caught_up_ms"]
    read = parse(_sealed(document), "m")
    assert read == msgspec.structs.replace(MANIFEST, caught_up_ms=MANIFEST.created_ms, segments=[SEGMENT])


@pytest.mark.parametrize("number", [1, 2])
def test_of_a_segment_of_an_earlier_format_with_lists_of_its_own_the_rows_and_files_stay(number: int) -> None:
    read = parse(_sealed(_older(number, kind="ivfpq")), "m").segments
    assert read == [msgspec.structs.replace(SEGMENT, kind="flat", effort=0, recall=1.0)]
    assert parse(_sealed(_older(number)), "m").segments == [SEGMENT]


def test_a_segment_gets_other_codes_in_the_place_of_those_it_had() -> None:
    assert SEGMENT.codes is None
    other = CodesEntry("codes-000008.u8", FileEntry(80, "ef" * 16), 8, "34" * 16, 0.125, 0)
    entry = SEGMENT.with_codes(CODES).with_codes(other)
    assert entry.codes == other
    assert entry.files == {**SEGMENT.files, other.name: other.file}


@pytest.mark.parametrize("number", [1, 2])
def test_a_field_that_an_earlier_format_did_not_have_is_another_version_s(number: int) -> None:
    for document in (_older(number, columns="x"), _older(number) | {"segments": [7]}, _older(number) | {"segments": 7}):
        with pytest.raises(NewerFormat):
            parse(_sealed(document), "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": FORMAT + 1}, f"it has format {FORMAT + 1}, this program reads 1 to {FORMAT}"),
        ({"format": None}, "it has format None"),
        ({"format": 0}, "it has format 0"),
        ({"compression": "zstd"}, "unknown field `compression`"),
        ({"segments": [{"name": 1}]}, "Expected `str`, got `int`"),
    ],
)
def test_a_whole_manifest_of_another_version_is_not_called_damaged(change: dict[str, object], said: str) -> None:
    with pytest.raises(NewerFormat, match="another version of Tidemark wrote this manifest") as refused:
        parse(_sealed(msgspec.to_builtins(MANIFEST) | change), "m")
    assert said in str(refused.value)


def test_a_whole_manifest_that_is_no_object_is_another_version_s() -> None:
    for document in ([], "text", 7):
        with pytest.raises(NewerFormat):
            parse(_sealed(document), "m")


def test_a_recreated_topic_is_another_identity_and_more_partitions_are_not() -> None:
    topic = TopicIdentity("c", "t", 3)
    assert replace(topic, partitions=4) == topic
    assert replace(topic, topic_id="u") != topic
