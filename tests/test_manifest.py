"""The manifest: what was written is read back, and nothing else is."""

from dataclasses import replace

import msgspec
import pytest

from tidemark.errors import CorruptCheckpoint
from tidemark.manifest import FORMAT, FileEntry, Manifest, SegmentEntry, TopicIdentity, encode, parse

SEGMENT = SegmentEntry(
    name="seg-000001-000001",
    kind="ivfpq",
    rows=10,
    effort=5,
    k_factor=8,
    recall=0.98,
    files={"vectors.f32": FileEntry(40, "ab" * 16)},
    dead_rows=3,
    dead_file="dead-0000000002.bits",
)
MANIFEST = Manifest(
    collection="docs",
    generation="g000001",
    partition=2,
    version=7,
    writer_epoch=3,
    writer_nonce="00ff",
    created_ms=1_700_000_000_000,
    identity={"topic": 'dö"cs\n', "dimension": 4, "metric": "l2", "id_format": "utf8"},
    cluster_id="c",
    topic_id="t",
    position=2**62,
    leader_epoch=-1,
    digest=2**64 - 1,
    segments=[SEGMENT],
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


def test_a_manifest_of_another_format_is_refused_by_name() -> None:
    with pytest.raises(CorruptCheckpoint, match=f"has format 99, this program reads {FORMAT}"):
        parse(encode(msgspec.structs.replace(MANIFEST, format=99)), "m")


def test_a_recreated_topic_is_another_identity_and_more_partitions_are_not() -> None:
    topic = TopicIdentity("c", "t", 3)
    assert replace(topic, partitions=4) == topic
    assert replace(topic, topic_id="u") != topic
