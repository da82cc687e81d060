"""A producer that speaks Kafka's protocol by itself, for records that no client library would write.

One Produce request (version 7) with one record batch (format 2) over a socket: https://kafka.apache.org/protocol.
Keys, values, header names and header values are any bytes or null. A record is written as it is given, nothing
is checked. Compressed batches hold stored blocks: valid for any reader, without a library for each codec.
"""

import gzip
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
CODECS: tuple[Codec, ...] = ("none", "gzip", "snappy", "lz4", "zstd")
_PRODUCE, _VERSION = 0, 7


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as it is on the wire; the timestamp is in milliseconds."""

    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int = 1_700_000_000_000


def produce(
    bootstrap_servers: str, topic: str, records: Sequence[RawRecord], codec: Codec = "none", partition: int = 0
) -> int:
    """Write one batch; the offset of its first record. Raises AssertionError with Kafka's error code when refused."""
    batch = _batch(records, codec)
    body = struct.pack(">hhih", _PRODUCE, _VERSION, 1, -1)
    body += struct.pack(">hhi", -1, -1, 30_000) + struct.pack(">i", 1) + _string(topic)
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    host, port = bootstrap_servers.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = connection.makefile("rb")
        (size,) = struct.unpack(">i", answer.read(4))
        found = answer.read(size)
        answer.close()
    at = 4 + 4 + 2 + len(topic.encode()) + 4
    _, error, offset = struct.unpack_from(">ihq", found, at)
    assert error == 0, f"refused with error {error}"
    return int(offset)


def _batch(records: Sequence[RawRecord], codec: Codec) -> bytes:
    first = records[0].timestamp
    stored = _COMPRESS[codec](b"".join(_record(at, record, first) for at, record in enumerate(records)))
    newest = max(record.timestamp for record in records)
    tail = struct.pack(">hiqqqhii", CODECS.index(codec), len(records) - 1, first, newest, -1, -1, -1, len(records))
    tail += stored
    head = struct.pack(">ibI", 0, 2, _crc32c(tail))  # leader epoch, magic, checksum
    return struct.pack(">qi", 0, len(head) + len(tail)) + head + tail


def _record(at: int, record: RawRecord, first_timestamp: int) -> bytes:
    body = b"\0" + _varint(record.timestamp - first_timestamp) + _varint(at)
    body += _bytes(record.key) + _bytes(record.value) + _varint(len(record.headers))
    body += b"".join(_bytes(name) + _bytes(value) for name, value in record.headers)
    return _varint(len(body)) + body


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _bytes(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(number: int) -> bytes:
    zigzag = ((number << 1) ^ (number >> 63)) & 0xFFFFFFFFFFFFFFFF
    return _unsigned(zigzag)


def _unsigned(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC_TABLE = _crc_table()


def _crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _blocks(content: bytes, most: int) -> Iterable[bytes]:
    return (content[at : at + most] for at in range(0, len(content), most))


def _snappy(content: bytes) -> bytes:
    out = _unsigned(len(content))
    for block in _blocks(content, 65_536):
        out += b"\xf4" + struct.pack("<H", len(block) - 1) + block  # a literal with a length of two bytes
    return out


def _lz4(content: bytes) -> bytes:
    descriptor = b"\x60\x40"  # version 1, independent blocks of at most 64 KiB
    out = b"\x04\x22\x4d\x18" + descriptor + bytes([xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF])
    for block in _blocks(content, 65_536):
        out += struct.pack("<I", len(block) | 0x80000000) + block
    return out + bytes(4)


def _zstd(content: bytes) -> bytes:
    out = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(content))  # one segment, its size in 4 bytes
    blocks = list(_blocks(content, 65_536))
    for number, block in enumerate(blocks, 1):
        out += struct.pack("<I", len(block) << 3 | (number == len(blocks)))[:3] + block
    return out


_COMPRESS = {"none": bytes, "gzip": gzip.compress, "snappy": _snappy, "lz4": _lz4, "zstd": _zstd}
