"""Text for a person's terminal: what would control it is written as an escape, such as \\x1b.

Ids, metadata, names and messages of others are data: printed as they are, they could colour, clear or answer for the
terminal, or turn a line round. JSON output needs none of this, because JSON escapes by itself.
"""

# C0, DEL, C1; marks, embeddings, overrides and isolates of direction; line and paragraph separators; lone surrogates.
_CONTROLS = (
    *((0x00, 0x1F), (0x7F, 0x9F), (0x061C, 0x061C), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069)),
    *((0xFEFF, 0xFEFF), (0xD800, 0xDFFF)),
)
_ESCAPES = {
    code: chr(code).encode("unicode_escape").decode() for first, last in _CONTROLS for code in range(first, last + 1)
}
_ESCAPES_BUT_NEWLINE = {code: escape for code, escape in _ESCAPES.items() if code != 0x0A}


def printable(text: str) -> str:
    """On one line, for a cell or a name."""
    return text.translate(_ESCAPES)


def printable_lines(text: str) -> str:
    """The same for a message of several lines: line ends stay."""
    return text.translate(_ESCAPES_BUT_NEWLINE)
