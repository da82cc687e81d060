"""Why a record is refused: a closed set of reasons for programs, and words for people.

The words say what a value looks like and what to write instead, because a count of bytes does not help whoever
sent text, UTF-16 or another system's envelope. Knows nothing of collections.
"""

import re
from typing import Literal

import msgspec

Reason = Literal["no_key", "bad_key", "decode", "dimension", "not_finite", "zero_norm", "too_large"]
REASONS: tuple[Reason, ...] = (
    "no_key",
    "bad_key",
    "decode",
    "dimension",
    "not_finite",
    "zero_norm",
    "too_large",
)
# JSON's white space; bytes.strip() without an argument takes more.
WHITE_SPACE = b" \t\n\r"
# As much of a value is looked at for words.
_SEEN_BYTES = 4096
_WHAT_TO_WRITE = 'write {"vector": [numbers]}, or the numbers as little-endian float32'
_UTF16 = re.compile(rb"[{\[\x22]\0([\t\n\r\x20-\x7e]\0)+|\0[{\[\x22](\0[\t\n\r\x20-\x7e])+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{8,}={0,2}\s*")
_NUMBERS = re.compile(rb"\s*[-+]?\d[\d.eE]*([\s,;]+[-+]?[\d.][-+\d.eE]*)+[\s,;]*")


class Refused(Exception):
    """A record that breaks a rule: its reason, and in its text the words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Envelope(msgspec.Struct):
    schema: msgspec.Raw
    payload: msgspec.Raw


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def text_seen(value: bytes) -> str | None:
    """What sort of text a value is that is not read as JSON, and what to write instead; None when it seems none."""
    start = value[:_SEEN_BYTES]
    if start.startswith(b"\xef\xbb\xbf"):
        return "the value starts with a byte order mark (EF BB BF): write UTF-8 without it"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or _UTF16.match(start):
        return "the value looks like UTF-16 text: write JSON as UTF-8"
    if _CONTROLS.search(start):
        return None
    first = start.lstrip(WHITE_SPACE)[:1]
    if first == b"{":
        return "the value looks like a JSON object"
    if first == b"[":
        return f"the value is a JSON array: {_WHAT_TO_WRITE}"
    if first == b'"':
        return f"the value is a JSON string, perhaps base64: {_WHAT_TO_WRITE}"
    if _BASE64.fullmatch(start):
        return "the value is text that looks like base64 or hex: write the bytes that it encodes"
    if _NUMBERS.fullmatch(start):
        return f"the value is a list of numbers as text: {_WHAT_TO_WRITE}"
    if start.strip(WHITE_SPACE) in (b"null", b"true", b"false"):
        return "the value is a JSON literal: a vector is written as an object, a delete as a null value without bytes"
    return None


def object_seen(value: bytes) -> str | None:
    """What sort of object a value that opens a brace is, and what to do; None when it is none that is known."""
    try:
        _decode_envelope(value)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    return (
        "the value is a Kafka Connect envelope (schema, payload): set value.converter.schemas.enable=false "
        "in the connector, so that it writes the payload alone"
    )


def length_seen(value: bytes, row_bytes: int, dimension: int) -> str:
    """Why a value has not the length of a vector."""
    if not value:
        return "the value is empty; a delete is a null value"
    wanted = f"{row_bytes} are {dimension} float32"
    said = f"the value has {len(value)} bytes, {wanted}"
    if len(value) == 2 * row_bytes:
        return f"{said}; twice as many are float64: write float32"
    if len(value) == row_bytes + 5 and value[0] == 0:
        return f"{said}; the 5 bytes more look like a schema registry's header: write the vector without it"
    return said
