"""A checkpoint that an earlier version wrote is read as it was meant."""

import json
import shutil
from pathlib import Path

import pytest

from tests.golden import CAUGHT_UP_MS, COLLECTION, KINDS, ROOTS, ROWS
from tests.messages import delete
from tests.rows import embeddings
from tests.views import open_checkpoint
from tidemark import searcher
from tidemark.checkpoint import Checkpoints
from tidemark.manifest import FORMAT, TopicIdentity
from tidemark.mirror import ViewMirror
from tidemark.quantizers import Quantizers
from tidemark.record import decode
from tidemark.view import View


def test_there_is_a_checkpoint_of_each_format_and_it_says_so() -> None:
    assert list(ROOTS) == list(range(1, FORMAT + 1))
    for number, root in ROOTS.items():
        for path in root.rglob("manifest-*.json"):
            assert json.loads(path.read_text().rpartition('"xxh3_128')[0])["format"] == number


@pytest.mark.parametrize("root", ROOTS.values(), ids=lambda root: root.name)
def test_a_checkpoint_of_an_earlier_format_is_taken_over_and_goes_on_in_this_one(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    owner = Checkpoints(tmp_path, COLLECTION, "g000001", 0, grace_s=0)
    view = View(COLLECTION)
    loaded = open_checkpoint(owner, view)
    assert loaded is not None
    assert owner.claim(TopicIdentity("cluster", "topic"), loaded, 0)
    state = view.partitions[0]
    for number in range(4):
        deleted = [delete(state.position + n, b"id-%d" % (200 * n + 50 + number)) for n in range(3)]
        view.apply(decode({0: deleted}, COLLECTION)[0])
        assert owner.publish(view, CAUGHT_UP_MS).format == FORMAT
        owner.remove_obsolete()
    again = Checkpoints(tmp_path, COLLECTION, "g000001", 0).load()
    assert again is not None and again.damaged == []
    assert sum(segment.live_count for segment in again.segments) == state.live_rows
    dead = [path.name for path in tmp_path.rglob("dead-*.bits")]
    assert dead and all(name.startswith("dead-000002-") for name in dead)  # older ones were obsolete


def test_the_codes_of_a_checkpoint_are_those_of_the_quantizer_beside_it() -> None:
    loaded = Checkpoints(ROOTS[3], COLLECTION, "g000001", 0).load()
    found = Quantizers(ROOTS[3], COLLECTION, "g000001").newest()
    assert loaded is not None and found is not None
    coded = loaded.segments[0]
    assert coded.codes is not None and coded.entry.quantizer == found.version == 1
    lists, codes = coded.codes
    again = found.quantizer.encode(coded.vectors)
    assert (lists == again.lists).mean() > 0.98 and (codes == again.codes).mean() > 0.98  # but for rounding


@pytest.mark.parametrize("number", ROOTS)
def test_a_checkpoint_of_each_format_is_read_and_searched(number: int) -> None:
    view = View(COLLECTION, shared=True)
    loaded = open_checkpoint(Checkpoints(ROOTS[number], COLLECTION, "g000001", 0), view)
    assert loaded is not None
    assert loaded.damaged == []
    manifest = loaded.manifest
    assert manifest.caught_up_ms == (manifest.created_ms if number == 1 else CAUGHT_UP_MS)
    assert [(segment.entry.kind, segment.entry.rows, segment.dead_rows) for segment in loaded.segments] == [
        ("flat", 195, 39),
        ("hnsw", 195, 39),
        ("flat", 195, 0),
    ]
    assert [segment.codes is not None for segment in loaded.segments] == [number > 2, False, False]
    state, mirror = view.partitions[0], ViewMirror(COLLECTION, view.place)
    assert (state.position, f"{state.digest:016x}", state.live_rows) == (615, "8369b2917ba15ffa", 507)
    vectors = searcher.prepare_queries(embeddings(3 * ROWS, COLLECTION.dimension), COLLECTION)
    for place, kind in enumerate(KINDS):
        hits = searcher.search(mirror, vectors[place * ROWS + 3 : place * ROWS + 4], 1).hits[0]
        assert [hit.id for hit in hits] == [b"id-%d" % (place * ROWS + 3)]
        assert hits[0].metadata == b'{"kind":"%s"}' % kind.encode()
        assert searcher.get(mirror, b"id-%d" % (place * ROWS + 1)) is None
    exact, found = (searcher.search(mirror, vectors, 10, exact=exact).hits for exact in (True, False))
    same = sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(exact, found, strict=True))
    assert same >= 0.95 * 10 * len(vectors)
