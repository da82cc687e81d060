"""One JSON value of a record: read into a vector's bytes and its metadata, or refused in words.

Invariants: nothing here raises but Refused; work is linear in the bytes, and values that are larger or deeper
than a record can need are refused before they are parsed. Every process refuses the same values: the parser's
own limit of nesting depends on how deep its caller stands, so a smaller one is checked first.
Knows nothing of messages. The rules are docs/format.md, section 1.
"""

import re
from typing import NoReturn

import msgspec
import numpy as np

from tidemark.json_text import why_not_json
from tidemark.refusal import WHITE_SPACE, Refused, object_seen, text_seen

METADATA_BYTES_MAX = 64 * 1024
# A float64 written in full has 24 characters; the rest is for indentation.
NUMBER_BYTES_MAX = 64
# Metadata and other fields, which are ignored.
OTHER_BYTES_MAX = 4 * METADATA_BYTES_MAX
DEPTH_MAX = 100
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class _JsonValue(msgspec.Struct):
    vector: list[float]
    metadata: msgspec.Raw = msgspec.Raw()


class _HasVector(msgspec.Struct):
    vector: msgspec.Raw


_decode_json = msgspec.json.Decoder(_JsonValue).decode
_decode_vector_only = msgspec.json.Decoder(_HasVector).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode
# msgspec's own errors are ValueErrors, as are those of Unicode.
_UNREADABLE = (ValueError, RecursionError)


def opens_object(value: bytes) -> bool:
    """Whether the first character after white space is a brace."""
    first = value[:1]
    return first == b"{" or (first in (b" ", b"\t", b"\n", b"\r") and value.lstrip(WHITE_SPACE)[:1] == b"{")


def is_record(value: bytes) -> bool:
    """Whether a value is a JSON object with the field `vector`, whatever that holds."""
    if not opens_object(value) or _is_too_deep(value):
        return False
    try:
        _decode_vector_only(value)
    except _UNREADABLE:
        return False
    return True


def read(value: bytes, dimension: int) -> tuple[bytes, bytes | None]:
    """The vector as `dimension` little-endian float32, and the metadata as it was written; raises Refused."""
    most = NUMBER_BYTES_MAX * dimension + OTHER_BYTES_MAX
    if len(value) > most:
        raise Refused(
            "too_large",
            f"the JSON value has {len(value)} bytes, at most {most} for {dimension} numbers: leave out other fields",
        )
    if _is_too_deep(value):
        raise Refused("decode", f"not a JSON record: nested deeper than {DEPTH_MAX} levels")
    try:
        decoded = _decode_json(value)
    except _UNREADABLE as error:
        _refuse(value, error)
    if len(decoded.vector) != dimension:
        raise Refused(
            "dimension",
            f"the vector has {len(decoded.vector)} numbers, the collection's dimension is {dimension}",
        )
    written = bytes(decoded.metadata)
    metadata = None if written in (b"", b"null") else written
    if metadata is not None:
        check_metadata(metadata)
    with np.errstate(over="ignore"):
        return np.asarray(decoded.vector, dtype=np.float64).astype("<f4").tobytes(), metadata


def check_metadata(metadata: bytes) -> None:
    """Raise Refused unless the bytes are one JSON object within the limits."""
    if len(metadata) > METADATA_BYTES_MAX:
        raise Refused("too_large", f"the metadata has {len(metadata)} bytes, at most {METADATA_BYTES_MAX}")
    if _is_too_deep(metadata):
        raise Refused("decode", f"the metadata is nested deeper than {DEPTH_MAX} levels")
    try:
        _decode_object(metadata)
    except _UNREADABLE as error:
        raise Refused("decode", f"the metadata is not a JSON object: {_words(metadata, error)}") from None


def _refuse(value: bytes, error: Exception) -> NoReturn:
    """Say what was seen instead of a record."""
    seen = object_seen(value) if opens_object(value) else text_seen(value)
    if seen is None and not value:
        seen = "the value is empty; a delete is a null value"
    raise Refused("decode", seen or f"not a JSON record: {_words(value, error)}") from None


def _words(text: bytes, error: Exception) -> str:
    said = str(error)
    if said.endswith("`$.vector`") and "got `str`" in said:
        return "`vector` is a string, perhaps base64: write it as a list of numbers"
    return why_not_json(text, error)


def _is_too_deep(text: bytes) -> bool:
    """Whether arrays and objects are nested deeper than DEPTH_MAX; what stands in strings does not count."""
    if text.count(b"[") + text.count(b"{") <= DEPTH_MAX:
        return False
    codes = np.frombuffer(_STRING.sub(b"", text), np.uint8) & 0xDF  # [ and { differ in one bit, ] and } too
    steps = (codes == ord("[")).astype(np.int32) - (codes == ord("]"))
    return len(steps) > 0 and int(np.cumsum(steps).max()) > DEPTH_MAX
