"""The builder's child, beside a disk that fails: a real child process, no broker."""

import errno
import os
import time
from pathlib import Path

import pytest

from consumer.builder import Builder
from consumer.partition import OwnedPartition, advance_builds
from tests.messages import upsert
from tests.services import wait_until
from tidemark import files
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.generation import Generation
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.settings import ConsumerSettings
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2", index=IndexParameters(kind="hnsw", ann_rows_min=64))
TOPIC = TopicIdentity("cluster", "topic")


def _with_unbuilt_segments(root: Path) -> OwnedPartition:
    checkpoints, view = Checkpoints(root, COLLECTION, "g000001", 0, grace_s=0), View(COLLECTION, 0)
    assert checkpoints.claim(TOPIC, None, 0)
    generation = Generation("g000001", 0, "earliest", COLLECTION.index)
    owned = OwnedPartition(("docs", 0), COLLECTION, generation, TOPIC, view, checkpoints, 0, 0)
    for _ in range(2):
        at = view.position
        messages = [upsert(n, b"%d" % n, [n, 1, 2, 3]) for n in range(at, at + 200)]
        view.apply(decode({0: messages}, COLLECTION)[0])
        owned.checkpoint()
    owned.last_record_at = 0.0
    return owned


@pytest.mark.parametrize("removal_fails", [False, True])
def test_a_build_that_cannot_be_used_leaves_nothing_and_is_not_made_again_at_once(
    tmp_path: Path, removal_fails: bool
) -> None:
    owned, builder, fails = _with_unbuilt_segments(tmp_path), Builder(1), True

    def failing(operation: str, path: Path) -> None:
        if fails and operation == "reading" and path.name == "index.faiss":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
        if fails and removal_fails and operation == "removing":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def advance() -> bool:
        advance_builds(builder, [owned], ConsumerSettings())
        return builder.problem is not None

    try:
        with files.watched(failing):
            wait_until(advance, 30, "a build fails")
            until = time.monotonic() + 0.8
            while time.monotonic() < until:
                advance()
            assert len(list(owned.checkpoints.directory.glob("seg-*"))) == 2 + removal_fails
            fails = False
            wait_until(lambda: not advance(), 30, "a build is used")
        assert [segment.kind for segment in owned.view.searcher.segments] == ["hnsw"]
    finally:
        builder.stop()
