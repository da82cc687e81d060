"""Words of a text, as Qdrant's default tokenizer takes them: runs of letters and digits, in lower case."""

import re
from typing import Literal

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def contains(text: str, wanted: list[str], mode: Literal["all", "any", "phrase"]) -> bool:
    """Whether a text has the words wanted; no words wanted are never had."""
    found = words(text)
    if mode == "any":
        return not set(wanted).isdisjoint(found)
    if mode == "all":
        return bool(wanted) and set(wanted) <= set(found)
    count = len(wanted)
    return bool(wanted) and any(found[at : at + count] == wanted for at in range(len(found) - count + 1))
