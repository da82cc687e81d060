"""What an HTTP worker makes of the follower that serves a collection. The follower is played by its documents."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from api.followed import Followed
from api.mirror import FollowerMirror
from api.problems import Incomplete, NotReady
from api.status import FollowerStatus
from api.tail_memory import TailMemory
from tests.messages import upsert
from tidemark.collection import Collection
from tidemark.mirror import ViewMirror
from tidemark.record import decode
from tidemark.settings import load
from tidemark.shared_memory import Document, Region
from tidemark.topic_watch import TopicWatch

COLLECTION = Collection("docs", "docs", 2, "l2")


@pytest.fixture
def followed(tmp_path: Path) -> list[Followed]:
    """Three partitions with a row each; none is opened yet."""
    path = tmp_path / "tidemark.toml"
    path.write_text(
        f'[kafka]\nbootstrap.servers = "127.0.0.1:1"\n[checkpoint]\nurl = "{tmp_path.as_uri()}"\n'
        '[collections.docs]\ndimension = 2\nmetric = "l2"\n'
    )
    watch, memory = TopicWatch(load(path), COLLECTION), TailMemory(2**30)
    made = [Followed(COLLECTION, tmp_path, "g000001", number, watch, 1_000, memory) for number in range(3)]
    for one in made:
        one.view.apply(decode({0: [upsert(0, b"a", np.ones(2, np.float32))]}, COLLECTION)[0])
    return made


class Told:
    """The follower's document and a worker's mirror of it."""

    def __init__(self, followed: list[Followed]) -> None:
        self.followed, self.document = followed, Document()
        self.mirror = FollowerMirror(COLLECTION, Document(Region.open(self.document.name)))

    def tell(self, served: bool) -> None:
        status = FollowerStatus(served=served, partitions=[one.status for one in self.followed])
        self.document.write(msgspec.json.encode(status))


def partitions_of(views: Sequence[ViewMirror]) -> list[int]:
    return [view.partition for view in views if view.searcher.tails]


def test_before_the_first_opening_nothing_is_served_and_no_partition_is_missing(followed: list[Followed]) -> None:
    told = Told(followed)
    followed[0].opened = True
    told.tell(served=False)
    for allow_partial in (False, True):
        with pytest.raises(NotReady):
            told.mirror.read(allow_partial, partitions_of)
    assert told.mirror.missing == []


def test_a_partition_that_is_being_opened_or_cannot_be_is_missing_and_named(followed: list[Followed]) -> None:
    told = Told(followed)
    followed[0].opened = True
    followed[2].refuse("its files are damaged")
    told.tell(served=True)
    with pytest.raises(Incomplete) as refused:
        told.mirror.read(False, partitions_of)
    for words in ("2 of 3", "partition 1: its newest checkpoint is being opened", "partition 2: its files are damaged"):
        assert words in str(refused.value)
    found, missing = told.mirror.read(True, partitions_of)
    assert (found, [partition for partition, _ in missing]) == ([0], [1, 2])
    for one in followed:
        one.opened = True
    told.tell(served=True)
    assert told.mirror.read(False, partitions_of) == ([0, 1, 2], [])


def test_when_no_partition_at_all_can_be_served_that_is_said_to_who_would_take_some(followed: list[Followed]) -> None:
    told = Told(followed)
    for one in followed:
        one.refuse("its files are damaged")
    told.tell(served=True)
    with pytest.raises(Incomplete, match="3 of 3"):
        told.mirror.read(True, partitions_of)


def test_more_partitions_than_a_message_can_name_are_counted(followed: list[Followed]) -> None:
    told = Told(followed * 4)
    told.tell(served=True)
    with pytest.raises(Incomplete, match=r"12 of 12.*and 7 more"):
        told.mirror.read(False, partitions_of)
