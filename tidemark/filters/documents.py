"""Metadata read back from its JSON, by every part of a filter alike.

Metadata was checked when its record was read (`json_value.py`); here it is only read. An integer beyond 64 bits is
the nearest float, or infinite.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

Document = dict[str, Any]


def read(text: bytes | None) -> Document | None:
    """One document; None when there is none, or no object."""
    if not text:
        return None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:  # an integer beyond float64
        try:
            found = msgspec.json.decode(text)
        except ValueError:  # no JSON, which no record may have
            return None
    return found if isinstance(found, dict) else None


def read_all(texts: Sequence[bytes | None]) -> list[Document | None]:
    """All documents, at two thirds of the cost of one by one."""
    try:
        found = orjson.loads(b"[%s]" % b",".join([text or b"null" for text in texts]))
    except orjson.JSONDecodeError:
        return list(map(read, texts))
    if len(found) != len(texts) or not {type(one) for one in found} <= {dict, type(None)}:
        return list(map(read, texts))
    documents: list[Document | None] = found
    return documents


def bounded(value: Any) -> Any:
    """The value, or its nearest float where it is an integer beyond 64 bits."""
    if type(value) is not int or INTEGER_MIN <= value <= INTEGER_MAX:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
