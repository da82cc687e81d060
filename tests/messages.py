"""Messages as a producer would have written them, one function per sort."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from confluent_kafka import Message
from numpy.typing import ArrayLike

from tidemark.record import Headers


def message(
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: Headers | None = None,
    leader_epoch: int = 0,
    partition: int = 0,
) -> Message:
    return Message(
        topic="t",
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=headers,
        timestamp=(1, 1_000 + offset),
        leader_epoch=leader_epoch,
    )


def raw_bytes(vector: ArrayLike) -> bytes:
    return np.asarray(vector, np.float64).astype("<f4").tobytes()


def upsert(offset: int, key: bytes, vector: ArrayLike, metadata: bytes | None = None, partition: int = 0) -> Message:
    headers: Headers | None = None if metadata is None else [("metadata", metadata)]
    return message(offset, key, raw_bytes(vector), headers, partition=partition)


def upsert_json(offset: int, key: bytes, vector: Sequence[float], **rest: Any) -> Message:
    return message(offset, key, json.dumps({"vector": list(vector), **rest}).encode())


def delete(offset: int, key: bytes, partition: int = 0) -> Message:
    return message(offset, key, None, partition=partition)
