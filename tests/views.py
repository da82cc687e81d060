"""Views for tests: what applies messages to them, codes their rows, and looks at them from another process's side."""

import time
from collections.abc import Iterable, Sequence

import numpy as np

from tidemark.ann.quantizer import Quantizer
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.collection_index import CollectionIndex
from tidemark.filters.grammar import Filter
from tidemark.mirror import ViewMirror
from tidemark.part import Part
from tidemark.record import Message, decode
from tidemark.searcher import Hit
from tidemark.selection import Place, select
from tidemark.view import View


def opened(
    collection: Collection,
    partitions: Sequence[int] = (0,),
    tail_rows: int | None = None,
    reclaimed_after_s: float = 60.0,
) -> View:
    """A view that can be searched, of partitions without records."""
    view = View(collection, True, tail_rows, reclaimed_after_s)
    for partition in partitions:
        view.open(partition, [], 0, -1, 0)
    return view


def apply(view: View, messages: Sequence[Message]) -> None:
    """Apply messages of any partitions, those of a partition in the order of their offsets."""
    runs: dict[int, list[Message]] = {}
    for message in messages:
        runs.setdefault(message.partition() or 0, []).append(message)
    view.apply(decode(runs, view.collection)[0])


def open_checkpoint(checkpoints: Checkpoints, view: View) -> Loaded | None:
    """Have a view become the newest checkpoint of a partition, an empty partition without one; and what was loaded."""
    loaded, number = checkpoints.load(), checkpoints.partition
    if loaded is None:
        view.open(number, [], 0, -1, 0)
    else:
        manifest = loaded.manifest
        view.open(number, loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
    return loaded


def live_ids(view: View) -> set[bytes]:
    """The ids of all rows of a view that live, in memory and in segments; each is there once."""
    parts: Iterable[Part] = (*view.segments, *view.tails)
    found = [part.id_of(row) for part in parts for row in part.live.numbers().tolist()]
    assert len(set(found)) == len(found)
    return set(found)


def page(mirror: ViewMirror, after: tuple[int, int] | None = None, limit: int = 10**6) -> list[Hit]:
    """Up to `limit` living rows in the order of partition and offset, after the given one, as the api asks for them."""
    place = None if after is None else Place(*after)
    return [row.hit for row in select(mirror, Filter()).page(place, limit)]


def codes_made(index: CollectionIndex, timeout_s: float = 30.0) -> None:
    """Turn until there is nothing left to do."""
    deadline = time.monotonic() + timeout_s
    index.turn(may_train=False)
    while not index.idle:
        assert time.monotonic() < deadline, "the index does not come to an end"
        time.sleep(0.0005)
        index.turn(may_train=False)


def quantizer_of(view: View, seed: int = 0, recall_target: float = 0.97) -> Quantizer | None:
    """A quantizer of a view's living rows, None when they are too few."""
    parts: Iterable[object] = (*view.segments, *view.tails)
    rows = [part.vectors[part.live.numbers()] for part in parts]  # type: ignore[attr-defined]
    sample = np.concatenate(rows)
    if len(sample) < 64:
        return None
    return Quantizer.train(sample, view.collection.metric, len(sample), recall_target, seed)
