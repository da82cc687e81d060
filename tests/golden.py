"""Writes a checkpoint as this version of the format has it: `python -m tests.golden`.

One is made per version of the format and then kept: later versions must read it (test_golden.py). The first is in
`tests/golden/`, each later one in a directory beside it that has the format's number in its name.
"""

import shutil
from pathlib import Path

from tests.messages import delete, upsert
from tests.rows import embeddings, unit
from tidemark.ann.quantizer import Quantizer
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.manifest import FORMAT, TopicIdentity
from tidemark.quantizers import Quantizers, Versioned
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.segment_files import write_segment
from tidemark.view import View

_HERE = Path(__file__).parent
ROOTS = {1: _HERE / "golden", 2: _HERE / "golden_2", 3: _HERE / "golden_3"}
CAUGHT_UP_MS = 1_700_000_000_000
COLLECTION = Collection(name="docs", topic="docs", dimension=8, metric="cosine")
# The first segment has codes, in formats 1 and 2 lists of its own.
KINDS: tuple[IndexKind, ...] = ("ivfpq", "hnsw", "flat")
ROWS = 200


def make(root: Path) -> View:
    """A segment of each kind, each with dead rows: updated by a later one, or deleted."""
    checkpoints, view = Checkpoints(root, COLLECTION, "g000001", 0), View(COLLECTION)
    state = view.open(0, [], 0, -1, 0)
    checkpoints.claim(TopicIdentity("cluster", "topic"), None, 0)
    vectors = embeddings(len(KINDS) * ROWS, COLLECTION.dimension)
    quantizer = Versioned(1, Quantizer.train(unit(vectors), COLLECTION.metric, len(vectors), 0.95, seed=1))
    assert Quantizers(root, COLLECTION, "g000001").create(*quantizer)
    for number, kind in enumerate(KINDS):
        first = state.position
        part = vectors[number * ROWS : (number + 1) * ROWS]
        ids = [b"id-%d" % (number * ROWS + n if n % 5 else n) for n in range(ROWS)]  # each fifth replaces one
        messages = [
            upsert(first + n, id_, vector, b'{"kind":"%s"}' % kind.encode() if n % 2 else None)
            for n, (id_, vector) in enumerate(zip(ids, part, strict=True))
        ]
        messages += [delete(first + ROWS + n, ids[7 * n + 1]) for n in range(5)]
        view.apply(decode({0: messages}, COLLECTION)[0])
        rows = view.unsaved_rows(0)
        assert rows is not None
        directory = checkpoints.new_segment_directory()
        parameters = IndexParameters(kind=kind, ann_rows_min=64)
        coded = quantizer if kind == "ivfpq" else None
        entry = write_segment(directory, rows, COLLECTION.metric, parameters, 1, coded)
        view.saved(0, Segment(directory, entry, COLLECTION.dimension, COLLECTION.metric))
    checkpoints.publish(view, CAUGHT_UP_MS)
    return view


if __name__ == "__main__":
    shutil.rmtree(ROOTS[FORMAT], ignore_errors=True)
    make(ROOTS[FORMAT])
