"""What is wrong with bytes that should be JSON or UTF-8 text, in words for whoever wrote them.

Decoders name the byte at which they gave up, which misleads where the cause is the encoding: a byte order mark is
"an invalid character", half of a surrogate pair "truncated". Asked only after a decoder has refused the bytes.
"""

import re

_MARKS = ((b"\xef\xbb\xbf", "a byte order mark"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_ESCAPED = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:"
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2})(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"  # a first half without a second
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    rb"|(\\u[dD][c-fC-F][0-9a-fA-F]{2}))"  # a second half without a first
)


def why_not_json(raw: bytes, error: Exception) -> str:
    """Why JSON was refused; the decoder's own words where they say it."""
    if problem := why_not_utf8(raw):
        return problem
    if raw[1:2] == b"\0":
        return "it is UTF-16 or UTF-32: write it as UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    for found in _ESCAPED.finditer(raw):
        if half := found[1] or found[2]:
            return f"{half.decode()} is half of a surrogate pair, not a character"
    return "it ends too soon" if "truncated" in str(error) else str(error)


def why_not_utf8(raw: bytes) -> str | None:
    """What is wrong with its encoding; None when it is UTF-8 without a byte order mark."""
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return f"it starts with {name}: write it as UTF-8 without a byte order mark"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8: write it as UTF-8"
    return None
