"""Ids as text: how a record's key is written in JSON and in URLs, per the collection's `id_format`.

`utf8` is the key itself, `int64` the decimal number of its 8 bytes (big-endian, signed), `bytes` is base64url
without padding. `from_text(to_text(key))` is the key again, for every key the decoder lets through.
"""

import base64
import binascii

from tidemark.collection import IdFormat
from tidemark.errors import BadQuery
from tidemark.record import KEY_BYTES_MAX

_SHOWN = 60


def to_text(key: bytes, id_format: IdFormat) -> str:
    if id_format == "int64":
        return str(int.from_bytes(key, "big", signed=True))
    if id_format == "bytes":
        return base64.urlsafe_b64encode(key).rstrip(b"=").decode()
    return key.decode()


def from_text(text: str, id_format: IdFormat) -> bytes:
    """The key of an id; raises BadQuery that says how an id is written."""
    if id_format == "int64":
        return _from_decimal(text)
    key = _from_base64(text) if id_format == "bytes" else _from_string(text)
    if not key:
        raise BadQuery("an id is empty")
    if len(key) > KEY_BYTES_MAX:
        raise BadQuery(f"id {_short(text)} has {len(key)} bytes, at most {KEY_BYTES_MAX}")
    return key


def _from_decimal(text: str) -> bytes:
    # At most 20 characters: int() refuses or is slow on huge strings.
    if len(text) <= 20 and text.isascii() and text.removeprefix("-").isdigit() and -(2**63) <= int(text) < 2**63:
        return int(text).to_bytes(8, "big", signed=True)
    raise BadQuery(f"id {_short(text)}: ids here are whole numbers from -2**63 to 2**63 - 1, written as strings")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadQuery(f"id {_short(text)}: ids of this collection are written as base64url") from None


def _from_string(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadQuery(f"id {_short(text)} is not valid Unicode") from None


def _short(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
