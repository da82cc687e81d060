"""A follower has the rows of all its partitions coded, whichever has most of them to do. Its thread is not started."""

from pathlib import Path

import pytest

from api.followed import Followed
from api.follower import Follower
from api.tail_memory import TailMemory
from tests.messages import upsert
from tests.rows import embeddings
from tidemark.record import decode
from tidemark.settings import load
from tidemark.topic_watch import TopicWatch

DIMENSION = 32


def test_each_partition_whose_rows_drift_gets_another_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.view.ENCODED_NUMBERS", 1_024 * DIMENSION)
    monkeypatch.setattr("tidemark.view.DRIFTED_ROWS_MIN", 3_000)
    path = tmp_path / "tidemark.toml"
    path.write_text(
        f'[kafka]\nbootstrap.servers = "127.0.0.1:1"\n[checkpoint]\nurl = "{tmp_path.as_uri()}"\n'
        f'[collections.docs]\ndimension = {DIMENSION}\nmetric = "l2"\n'
    )
    settings = load(path)
    collection = settings.collection("docs")
    watch = TopicWatch(settings, collection)
    follower = Follower(settings, collection, "g000001", watch)
    try:
        follower.partitions = tuple(
            Followed(collection, settings.checkpoint_root, "g000001", number, watch, 1_000_000, TailMemory(2**30))
            for number in range(2)
        )
        like, unlike = embeddings(2_000, DIMENSION), embeddings(2_000, DIMENSION, seed=9) * 20
        for first, vectors in ((0, like), (2_000, unlike)):
            messages = [upsert(first + n, b"%d" % (first + n), vector) for n, vector in enumerate(vectors)]
            for followed in follower.partitions:
                followed.view.apply(decode({0: messages}, collection)[0])
            for _ in follower.partitions:
                follower._give_codes()
                if follower._encoding is not None:
                    follower._encoding.result()
        follower._give_codes()
        assert [len(followed.view.searcher.tails) for followed in follower.partitions] == [2, 2]
    finally:
        follower.close()
