"""Paths into a document as they are written: `a.b`, `a[].b`, `a[0]`, `"a.b".c`.

A key stands in double quotes where it holds a dot, a bracket or a quote; within quotes `\\"` is a quote and
`\\\\` a backslash.
"""

import re

from tidemark.filters.grammar import ELEMENTS, Path

_KEY = re.compile(r'"((?:[^"\\]|\\["\\])*)"|([^."\[\]]+)')
_INDEX = re.compile(r"\[(\d{0,9})\]")
_PLAIN = re.compile(r'[^."\[\]]+')
DEPTH_MAX = 100  # as deep as metadata may be


def parse_path(text: str) -> Path:
    """The steps of a path; raises ValueError with what is wrong."""
    steps: list[str | int] = []
    at = 0
    while True:
        key = _KEY.match(text, at)
        if key is None:
            raise ValueError(_expected(text, at, "a key"))
        steps.append(key[2] if key[1] is None else re.sub(r"\\(.)", r"\1", key[1]))
        at = key.end()
        while index := _INDEX.match(text, at):
            steps.append(int(index[1]) if index[1] else ELEMENTS)
            at = index.end()
        if len(steps) > DEPTH_MAX:
            raise ValueError(f"a path has at most {DEPTH_MAX} steps")
        if at == len(text):
            return tuple(steps)
        if text[at] != ".":
            raise ValueError(_expected(text, at, "a dot, [] or [index]"))
        at += 1


def format_path(path: Path) -> str:
    """A path as `parse_path` reads it."""
    written = ""
    for step in path:
        if isinstance(step, int):
            written += "[]" if step == ELEMENTS else f"[{step}]"
        else:
            written += ("." if written else "") + (step if _PLAIN.fullmatch(step) else _quoted(step))
    return written


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _expected(text: str, at: int, what: str) -> str:
    seen = repr(text[at : at + 20]) if at < len(text) else "the end"
    return f"expected {what} at character {at} of the path, found {seen}"
