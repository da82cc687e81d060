"""What an HTTP worker makes of the follower that serves a collection. The follower is played by its documents."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from api.followed import Followed
from api.mirror import FollowerMirror
from api.problems import Incomplete, NotReady
from api.status import FollowerStatus
from api.tail_memory import TailMemory
from api.unbuilt import Unbuilt
from tests.messages import upsert
from tests.rows import segment_of
from tests.views import apply
from tidemark import layout
from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.collection_index import CollectionIndex
from tidemark.mirror import ViewMirror
from tidemark.settings import load
from tidemark.shared_memory import Document, Region
from tidemark.topic_watch import TopicWatch
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 2, "l2")


@pytest.fixture
def followed(tmp_path: Path) -> list[Followed]:
    """Three partitions with a row each; none is opened yet."""
    path = tmp_path / "tidemark.toml"
    path.write_text(
        f'[kafka]\nbootstrap.servers = "127.0.0.1:1"\n[checkpoint]\nurl = "{tmp_path.as_uri()}"\n'
        '[collections.docs]\ndimension = 2\nmetric = "l2"\n'
    )
    watch, memory, view = TopicWatch(load(path), COLLECTION), TailMemory(2**30), View(COLLECTION, shared=True)
    return [Followed(view, tmp_path, "g000001", number, watch, 1_000, memory) for number in range(3)]


def open_with_a_row(followed: Followed) -> None:
    followed.applied = followed.view.open(followed.number, (), 0, -1, 0)
    apply(followed.view, [upsert(0, b"a", np.ones(2, np.float32), partition=followed.number)])
    followed.opened = True


class Told:
    """The follower's document and a worker's mirror of it."""

    def __init__(self, followed: list[Followed]) -> None:
        self.followed, self.document, self.view = followed, Document(), followed[0].view
        self.mirror = FollowerMirror(COLLECTION, Document(Region.open(self.document.name)))
        self.index = CollectionIndex(self.view, 0.97, 8_192)

    def tell(self, served: bool) -> None:
        unbuilt = Unbuilt.rows_of(self.view, self.index)
        partitions = [one.status(unbuilt) for one in self.followed]
        status = FollowerStatus(served=served, view=self.view.place, partitions=partitions)
        self.document.write(msgspec.json.encode(status))
        self.mirror.refresh()


def partitions_of(view: ViewMirror) -> list[int]:
    return [int(number) for tail in view.snapshot().tails for number in tail.partitions[: tail.row_count]]


def test_before_the_first_opening_nothing_is_served_and_no_partition_is_missing(followed: list[Followed]) -> None:
    told = Told(followed)
    open_with_a_row(followed[0])
    told.tell(served=False)
    for allow_partial in (False, True):
        with pytest.raises(NotReady):
            told.mirror.read(allow_partial, partitions_of)
    assert told.mirror.missing == []


def test_a_partition_that_is_being_opened_or_cannot_be_is_missing_and_named(followed: list[Followed]) -> None:
    told = Told(followed)
    open_with_a_row(followed[0])
    followed[2].refuse("its files are damaged")
    told.tell(served=True)
    with pytest.raises(Incomplete) as refused:
        told.mirror.read(False, partitions_of)
    for words in ("2 of 3", "partition 1: its newest checkpoint is being opened", "partition 2: its files are damaged"):
        assert words in str(refused.value)
    found, missing = told.mirror.read(True, partitions_of)
    assert (found, [partition for partition, _ in missing]) == ([0], [1, 2])
    for one in followed[1:]:
        open_with_a_row(one)
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


def test_an_answer_is_as_old_as_the_partition_that_is_furthest_behind(followed: list[Followed]) -> None:
    told, asked_ms = Told(followed), now_ms()
    for one in followed:
        open_with_a_row(one)
        one.caught_up.as_of_ms = asked_ms
    told.tell(served=True)
    assert told.mirror.staleness_ms is not None and 0 < told.mirror.staleness_ms < 60_000, "its end is not known"
    followed[1].caught_up.as_of_ms = asked_ms - 600_000
    told.tell(served=True)
    assert 600_000 <= told.mirror.staleness_ms < 660_000
    followed[2].caught_up.as_of_ms = 0
    told.tell(served=True)
    assert told.mirror.staleness_ms is None


@pytest.mark.parametrize("allow_partial", [False, True])
def test_an_answer_during_which_a_partition_turned_out_not_to_open_is_made_again(
    followed: list[Followed], tmp_path: Path, allow_partial: bool
) -> None:
    """Its segment is announced after what is missing was looked at, and its file is another one by then."""
    told, answers = Told(followed), []
    for one in followed:
        open_with_a_row(one)
    told.tell(served=True)
    segment = segment_of(tmp_path / "segment", np.ones((5, 2), np.float32))
    path = segment.directory / layout.VECTORS
    path.unlink()
    path.write_bytes(b"of another size")

    def work(view: ViewMirror) -> int:
        if not answers:
            told.view.open(0, [segment], 10, -1, 0)
        answers.append(len(view.snapshot().segments))
        return len(answers)

    if allow_partial:
        answer, missing = told.mirror.read(True, work)
        assert (answer, [partition for partition, _ in missing]) == (2, [0])
    else:
        with pytest.raises(Incomplete, match="partition 0 of 'docs' cannot be opened here"):
            told.mirror.read(False, work)
        assert answers == [0]
