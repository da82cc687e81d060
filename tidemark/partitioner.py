"""Which partition a producer puts an id into: the hash functions of the Kafka clients in use.

One id lives in one partition only while everybody who writes it hashes alike. Producers of ours have librdkafka do
it (`LIBRDKAFKA`); the functions here say what a client would have chosen, to check where ids are. A test compares
them with what librdkafka did.
"""

import zlib
from typing import Literal, get_args

Partitioner = Literal["murmur2", "consistent", "fnv1a"]
PARTITIONERS: tuple[Partitioner, ...] = get_args(Partitioner)

# librdkafka's names. `_random` differs for empty keys alone, which no id has.
LIBRDKAFKA: dict[Partitioner, str] = {
    "murmur2": "murmur2_random",
    "consistent": "consistent_random",
    "fnv1a": "fnv1a_random",
}


def partition_of(key: bytes, partitions: int, partitioner: Partitioner) -> int:
    """The partition of a topic with so many that a key goes to."""
    if partitioner == "murmur2":
        return (murmur2(key) & 0x7FFF_FFFF) % partitions
    if partitioner == "consistent":
        return zlib.crc32(key) % partitions
    return fnv1a(key) % partitions


def murmur2(key: bytes) -> int:
    """As Kafka's own (Java) clients: MurmurHash2 with their seed, as an unsigned 32-bit number."""
    m, mask = 0x5BD1_E995, 0xFFFF_FFFF
    h = 0x9747_B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def fnv1a(key: bytes) -> int:
    """As Sarama and librdkafka: 32-bit FNV-1a, its absolute value as a signed number."""
    h = 0x811C_9DC5
    for byte in key:
        h = (h ^ byte) * 0x0100_0193 & 0xFFFF_FFFF
    return h if h < 1 << 31 else (1 << 32) - h
