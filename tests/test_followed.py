"""A followed partition: what it takes over of checkpoints, and what it remembers of them. No broker is asked."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.followed import Followed
from api.follower import Follower
from api.mirror import FollowerMirror
from api.tail_memory import TailMemory
from tests.messages import delete, upsert
from tests.model import Model, Operation
from tests.services import wait_until
from tests.views import apply, opened, page
from tidemark import generation
from tidemark.caught_up import now_ms
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import LogGap
from tidemark.log import Log
from tidemark.manifest import TopicIdentity
from tidemark.mirror import ViewMirror
from tidemark.segment import Segment
from tidemark.settings import load
from tidemark.shared_memory import Document, Region
from tidemark.topic_watch import TopicFacts, TopicWatch
from tidemark.view import View

TOPIC = TopicIdentity("cluster", "topic")
COLLECTION = Collection("docs", "docs", 2, "l2")


class Both:
    """The owner of a partition, who makes checkpoints, and a follower, over the same log of two-dimensional rows."""

    def __init__(self, root: Path) -> None:
        path = root / "tidemark.toml"
        path.write_text(
            f'[kafka]\nbootstrap.servers = "127.0.0.1:1"\n[checkpoint]\nurl = "{root.as_uri()}"\n'
            '[collections.docs]\ndimension = 2\nmetric = "l2"\n'
        )
        self.memory = TailMemory(2**30)
        self.settings = load(path)
        self.watch = TopicWatch(self.settings, COLLECTION)
        self.view = View(COLLECTION, shared=True)
        self.followed = Followed(self.view, root, "g000001", 0, self.watch, 1_000_000, self.memory)
        self.owner, self.checkpoints = opened(COLLECTION), Checkpoints(root, COLLECTION, "g000001", 0)
        assert self.checkpoints.claim(TOPIC, None, 0)
        self.model, self.end = Model(), 0
        self.messages: list[Any] = []

    def put(self, *ids: int) -> None:
        """Both apply a record for each id, a delete where it is negative."""
        messages = []
        for number in ids:
            id_, vector = b"%d" % abs(number), np.array([number, self.end], np.float32)
            self.model.apply([Operation(self.end, id_, vector if number >= 0 else None)])
            messages.append(upsert(self.end, id_, vector) if number >= 0 else delete(self.end, id_))
            self.end += 1
        self.messages += messages
        for view in (self.owner, self.view):
            apply(view, messages)

    def publish(self, caught_up_ms: int = 1) -> None:
        self.checkpoints.publish(self.owner, caught_up_ms)

    def take(self) -> list[str]:
        """Have the follower take the newest checkpoint over; what was damaged of it."""
        found = self.followed.load()
        assert found is not None
        self.followed.take(found)
        return found.loaded.damaged

    @property
    def searched(self) -> tuple[Segment, ...]:
        return self.followed.applied.segments

    def assert_is_the_model(self) -> None:
        """Ids, vectors, offsets, count and digest, by another process's view."""
        mirror, state = ViewMirror(COLLECTION, self.view.place), self.followed.applied
        hits = page(mirror, None, 10**6)
        assert [(hit.id, hit.offset, hit.vector.tolist()) for hit in hits] == [
            (id_, row.offset, [] if row.vector is None else row.vector.tolist())
            for id_, row in sorted(self.model.rows.items(), key=lambda item: item[1].offset)
        ]
        assert mirror.positions == {0: self.end}
        assert (state.live_rows, state.digest) == (len(self.model.rows), self.model.digest)


def test_segments_passed_over_are_not_verified_again_with_every_manifest(tmp_path: Path) -> None:
    """Their files are damaged once they were verified: whoever reads them again says so."""
    both = Both(tmp_path)
    both.publish()
    both.take()
    both.put(*range(1, 41))
    both.publish()
    both.put(50)  # ahead of the checkpoint: its rows stay in memory, its segment is passed over
    both.take()
    assert both.searched == ()
    for path in both.checkpoints.directory.glob("*/vectors.f32"):
        path.write_bytes(b"\0" * path.stat().st_size)
    for first in (60, 70, 80):
        both.put(first, -first + 55, first + 1)
        both.publish()
        both.put(first + 2)
        assert both.take() == []
    assert len(list(both.followed.verified)) == 4
    both.assert_is_the_model()


def test_a_segment_that_was_passed_over_and_is_searched_later_knows_what_died_meanwhile(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.publish()
    both.take()
    for first in (1, 101, 201):
        both.put(*range(first, first + 50))
        both.publish()
        both.put(first + 60, -first, first + 1)
        both.take()
        assert both.searched == ()
        both.put(-(first + 2), first + 3)
        both.publish()
    both.put(999)
    both.memory.bytes_max = 1  # nothing may be kept in memory any more
    both.put(-102, 5)
    both.publish()
    both.put(1000)
    both.take()
    assert len(both.searched) > 3
    both.assert_is_the_model()


def test_a_position_is_as_old_as_its_checkpoint_says_whenever_that_was_written(tmp_path: Path) -> None:
    """A claim writes the old position again, just now; a consumer that is behind does as well."""
    both = Both(tmp_path)
    long_ago = now_ms() - 3_600_000
    both.put(1, 2, 3)
    both.publish(caught_up_ms=long_ago)
    heir = Checkpoints(tmp_path, COLLECTION, "g000001", 0)
    assert heir.claim(TOPIC, heir.load(), 0)
    both.take()
    assert both.followed.manifest is not None and both.followed.manifest.created_ms > long_ago
    assert both.followed.caught_up.as_of_ms == long_ago


def test_a_directory_that_was_begun_again_is_followed_by_its_content(tmp_path: Path) -> None:
    """Versions and segments' names begin again in it; as in StarRocks/starrocks#33567, where old versions held."""
    both = Both(tmp_path)
    for first in (1, 11, 21, 31):
        both.put(*range(first, first + 5))
        both.publish()
    both.memory.bytes_max = 1  # nothing is kept in memory: rows are searched in the segments
    both.take()
    before = both.followed.manifest
    shutil.move(both.checkpoints.directory, tmp_path / "aside")
    both.put(41, -1, 12)
    both.checkpoints = Checkpoints(tmp_path, COLLECTION, "g000001", 0)
    owner = opened(COLLECTION)
    assert both.checkpoints.claim(TOPIC, None, 0)
    apply(owner, both.messages)
    both.owner = owner
    both.publish()
    assert both.take() == []
    assert before is not None and both.followed.manifest is not None
    assert both.followed.manifest.version < before.version
    assert both.followed.checkpointed == both.end
    both.assert_is_the_model()


def facts(first: int, end: int, topic: TopicIdentity = TOPIC) -> TopicFacts:
    asked = {"asked_at": time.monotonic(), "asked_ms": now_ms(), "identity_at": time.monotonic()}
    return TopicFacts(topic, None, {0: first}, {0: end}, {0: 0}, {0: end}, {}, **asked)


def test_advice_that_was_followed_is_not_given_again(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.put(1, 2, 3)
    both.publish()
    both.take()
    log = Log({"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(LogGap, match="tidemark replay docs"):
        both.followed.start_reading(log, facts(50, 90))
    both.followed.replacement = "g000002"
    with pytest.raises(LogGap, match="generation g000002 takes its place") as told:
        both.followed.start_reading(log, facts(50, 90))
    assert "47 offsets were removed unread" in str(told.value)
    assert "tidemark replay" not in str(told.value)
    log.close()


def test_a_log_that_was_shorter_when_it_was_asked_about_before_the_checkpoint_was_taken_is_no_gap(
    tmp_path: Path,
) -> None:
    both = Both(tmp_path)
    both.put(1, 2, 3)
    both.publish()
    before = facts(0, 2)
    both.take()
    log = Log({"bootstrap.servers": "127.0.0.1:1"})
    both.followed.start_reading(log, before)
    assert not both.followed.reading
    both.followed.start_reading(log, facts(0, 3))
    assert both.followed.reading
    log.close()


def test_how_rows_are_indexed_is_as_the_generation_says_and_not_as_the_settings_do_by_now(tmp_path: Path) -> None:
    both = Both(tmp_path)
    configured = replace(COLLECTION, index=IndexParameters(kind="flat", recall_target=0.5))
    made = IndexParameters(recall_target=0.9, ann_rows_min=500)
    follower = Follower(both.settings, configured, "g000001", both.watch)
    follower._publish()
    mirror = FollowerMirror(configured, Document(Region.open(follower.document.name)))
    mirror.refresh()
    assert mirror.collection == configured

    def look() -> IndexParameters:
        follower.openings.look()
        wait_until(lambda: follower.openings.load_found(facts(0, 1)), 10, "it has looked")
        follower._publish()
        mirror.refresh()
        assert mirror._view is not None and mirror._view.collection == mirror.collection
        return mirror.collection.index

    assert look() == configured.index, "no consumer has made the generation yet"
    assert generation.served(tmp_path, replace(COLLECTION, index=made)).index == made
    assert look() == made
    assert follower.index._view.collection.index.kind == "ivfpq"
    assert (follower.index._recall_target, follower.index._ann_rows_min) == (0.9, 500)
    follower.close()


def test_what_was_refused_is_tried_at_once_when_the_topic_or_the_generation_wanted_changes(tmp_path: Path) -> None:
    both = Both(tmp_path)
    both.publish()
    both.take()
    follower = Follower(both.settings, COLLECTION, "g000001", both.watch)
    follower.openings.partitions = (both.followed,)
    follower._note_changes(facts(0, 1))
    changes: list[Callable[[], None]] = [
        lambda: setattr(follower, "replacement", "g000002"),
        lambda: setattr(follower, "replacement", None),
    ]
    for change in changes:
        both.followed.refuse("for a reason")
        follower._note_changes(facts(0, 1))
        assert not both.followed.may_start(time.monotonic())
        change()
        follower._note_changes(facts(0, 1))
        assert both.followed.may_start(time.monotonic())
    both.followed.refuse("for a reason")
    follower._note_changes(facts(0, 1, TopicIdentity("cluster", "made again")))
    assert both.followed.may_start(time.monotonic())
    follower.close()
