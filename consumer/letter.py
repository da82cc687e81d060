"""One dead letter: what is written of a bad record, and how it becomes smaller.

Invariant: however small a letter is cut, it has the record's coordinates and reason, and its value is never
null, because a null value would delete on a compacted topic. Header names follow Kafka Connect's, so existing
tools show them (docs/format.md, section 1). Knows nothing of producers. Next: `dead_letter.py`, which sends.
"""

from dataclasses import dataclass, field

from tidemark.record import KEY_BYTES_MAX, BadRecord, Headers

# Below a broker's socket.request.max.bytes (100 MiB): a larger request closes the connection instead of an answer.
CONTENT_BYTES_MAX = 32 * 1024 * 1024
# Of the reason in words and of the group's name: first, and after each cut of what Tidemark writes itself.
DETAIL_BYTES = (1024, 128, 0)
# Each cut leaves a quarter, so that the largest record is small enough for any topic after about ten refusals.
CUT_BY = 4
SHORTEST_PREFIX = 64
# What a letter takes in memory beside its record.
_OVERHEAD_BYTES = 1024
OWN_HEADERS = {
    "__connect.errors.topic",
    "__connect.errors.partition",
    "__connect.errors.offset",
    "__connect.errors.exception.message",
    "tidemark.reason",
    "tidemark.group",
    "tidemark.null",
    "tidemark.headers",
    "tidemark.truncated",
}


@dataclass(slots=True, eq=False)
class Letter:
    """A bad record on its way to `topic`; `source` is the partition it came from."""

    bad: BadRecord
    source: tuple[str, int]
    topic: str
    group: str
    key_required: bool = False
    alone: bool = False
    dropped: bool = False
    failures: int = 0
    size: int = 0
    _headers: Headers | None = None
    _room: int = field(default=CONTENT_BYTES_MAX, init=False)
    _cuts_of_ours: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.bad.headers is not None:
            self._headers = [(name, value) for name, value in self.bad.headers if name not in OWN_HEADERS]
        self.size = self._content_bytes() + _OVERHEAD_BYTES

    def _content_bytes(self) -> int:
        """Bytes of the producer's own: key, value and headers."""
        message = self.bad.message
        headers = sum(len(name) + len(value or b"") for name, value in self._headers or [])
        return len(message.key() or b"") + len(message.value() or b"") + headers

    def cut(self) -> bool:
        """Make the letter smaller; False when nothing is left that could go."""
        room = min(self._room, self._content_bytes())
        if room > 0:
            self._room = room // CUT_BY if room > SHORTEST_PREFIX else 0
            return True
        if self._cuts_of_ours == len(DETAIL_BYTES) - 1:
            return False
        self._cuts_of_ours += 1
        return True

    def contents(self) -> tuple[bytes | None, bytes, Headers]:
        """Key, value and headers as they are to be produced."""
        key, value, headers = self.bad.message.key(), self.bad.message.value(), self._headers or []
        cut = self._content_bytes() > self._room
        if cut:
            key, value, headers = self._prefixes(key, value, headers)
        cut = cut or self._cuts_of_ours > 0
        nulls = [name for name, part in (("key", key), ("value", value)) if part is None]
        if key is None and self.key_required:
            key = b""
        elif "key" in nulls:
            nulls.remove("key")
        return key, value or b"", [*headers, *self._coordinates(), *self._remarks(nulls, cut)]

    def _prefixes(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> tuple[bytes | None, bytes | None, Headers]:
        """What fits into the room: the key, then whole headers up to half of it, then the value's beginning."""
        key = key and key[: min(self._room, KEY_BYTES_MAX)]
        room = self._room - len(key or b"")
        kept: Headers = []
        left_for_headers = room // 2
        for name, content in headers:
            size = len(name.encode()) + len(content or b"")
            if size <= left_for_headers:
                left_for_headers -= size
                room -= size
                kept.append((name, content))
        return key, value and value[:room], kept

    def _coordinates(self) -> Headers:
        bad = self.bad
        detail_bytes = DETAIL_BYTES[self._cuts_of_ours]
        found: Headers = [
            ("__connect.errors.topic", self.source[0].encode()),
            ("__connect.errors.partition", str(self.source[1]).encode()),
            ("__connect.errors.offset", str(bad.message.offset()).encode()),
            ("tidemark.reason", bad.reason.encode()),
        ]
        if detail_bytes:
            found.append(("__connect.errors.exception.message", _short(bad.detail, detail_bytes)))
            found.append(("tidemark.group", _short(self.group, detail_bytes)))
        return found

    def _remarks(self, nulls: list[str], cut: bool) -> Headers:
        remarks: Headers = []
        if nulls:
            remarks.append(("tidemark.null", ",".join(nulls).encode()))
        if self._headers is None:
            remarks.append(("tidemark.headers", b"unreadable"))
        if cut:
            remarks.append(("tidemark.truncated", b"true"))
        return remarks


def _short(text: str, most: int) -> bytes:
    """UTF-8 of at most so many bytes, no character cut in two."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").encode()
