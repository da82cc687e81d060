"""A checkpoint that an earlier version wrote is read as it was meant."""

from tests.golden import COLLECTION, ROOT, ROWS
from tests.rows import embeddings
from tidemark import searcher
from tidemark.checkpoint import Checkpoints
from tidemark.view import View


def test_a_checkpoint_of_format_1_is_read_and_searched() -> None:
    loaded = Checkpoints(ROOT, COLLECTION, "g000001", 0).load()
    assert loaded is not None
    assert loaded.damaged == []
    assert [(segment.kind, segment.rows, segment.dead_rows) for segment in loaded.segments] == [
        ("ivfpq", 195, 39),
        ("hnsw", 195, 39),
        ("flat", 195, 0),
    ]
    view = View(COLLECTION, 0)
    view.open(loaded.segments, loaded.manifest.position, loaded.manifest.leader_epoch, loaded.manifest.digest)
    assert (view.position, f"{view.digest:016x}", view.live_rows) == (615, "8369b2917ba15ffa", 507)
    vectors = searcher.prepare_queries(embeddings(3 * ROWS, COLLECTION.dimension), COLLECTION)
    for number, kind in enumerate(("ivfpq", "hnsw", "flat")):
        hits = searcher.search([view], vectors[number * ROWS + 3 : number * ROWS + 4], 1).hits[0]
        assert [hit.id for hit in hits] == [b"id-%d" % (number * ROWS + 3)]
        assert hits[0].metadata == b'{"kind":"%s"}' % kind.encode()
        assert searcher.get([view], b"id-%d" % (number * ROWS + 1)) is None
    exact, found = (searcher.search([view], vectors, 10, exact=exact).hits for exact in (True, False))
    same = sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(exact, found, strict=True))
    assert same >= 0.95 * 10 * len(vectors)
