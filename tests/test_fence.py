"""Two writers of one partition: whatever is done first, one of them owns it and nothing of the owner's is damaged."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import turns
from tests.messages import delete, upsert
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.errors import StaleOwner
from tidemark.layout import mark_epoch
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.segment_files import verify_file
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
ATTEMPTS = 5


def _load(root: Path) -> Loaded | None:
    return Checkpoints(root, COLLECTION, "g000001", 0).load()


@dataclass
class Writer:
    """A consumer's part in it: takes the partition over, applies records, publishes and collects."""

    root: Path
    view: View = field(init=False)
    started: list[tuple[int, int]] = field(default_factory=list)  # epoch and position of each claim
    committed: list[int] = field(default_factory=list)
    stale: bool = False

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.root, COLLECTION, "g000001", 0, grace_s=0)

    def claim(self, loaded: Loaded | None) -> bool:
        claimed = self.checkpoints.claim(TOPIC, loaded, 0)
        if claimed:
            self.view = View(COLLECTION)
            if loaded is None:
                self.view.open(0, [], 0, -1, 0)
            else:
                manifest = loaded.manifest
                self.view.open(0, loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
            self.started.append((self.checkpoints.epoch, self.view.partitions[0].position))
        return claimed

    def take_over(self) -> "Writer":
        assert any(self.claim(self.checkpoints.load()) for _ in range(ATTEMPTS))
        return self

    def try_to_take_over(self) -> None:
        try:
            self.take_over()
        except StaleOwner:
            self.stale = True

    def apply(self, count: int) -> "Writer":
        """Records as they are on the log: by its offset each is the same for every writer."""
        offsets = range(self.view.partitions[0].position, self.view.partitions[0].position + count)
        messages = [
            delete(n, b"id-%d" % (n // 2)) if n % 3 == 2 else upsert(n, b"id-%d" % n, [n, 1, 2, 3]) for n in offsets
        ]
        self.view.apply(decode({0: messages}, COLLECTION)[0])
        return self

    def publish(self) -> "Writer":
        try:
            self.committed.append(self.checkpoints.publish(self.view, 0).position)
        except StaleOwner:
            self.stale = True
        return self

    def go_on(self, rounds: int = 6) -> None:
        for _ in range(rounds):
            self.apply(3).publish()
            self.checkpoints.remove_obsolete()


def _assert_whole(root: Path, writers: list[Writer]) -> None:
    """The newest checkpoint verifies, every file of every manifest is whole, and nothing committed is missing."""
    loaded = _load(root)
    assert loaded is not None and loaded.damaged == []
    assert loaded.manifest.position >= max((n for writer in writers for n in writer.committed), default=0)
    checkpoints = Checkpoints(root, COLLECTION, "g000001", 0)
    for version in checkpoints.versions():
        for entry in checkpoints.read(version).segments:
            for name, file in entry.files.items():
                verify_file(checkpoints.directory / entry.name / name, file)
    view = View(COLLECTION)
    view.open(0, loaded.segments, loaded.manifest.position, -1, loaded.manifest.digest)
    expected = Writer(root)
    expected.view = View(COLLECTION)
    expected.view.open(0, (), 0, -1, 0)
    expected.apply(view.partitions[0].position)
    found, should_be = view.partitions[0], expected.view.partitions[0]
    assert (found.digest, found.live_rows) == (should_be.digest, should_be.live_rows)


def test_an_owner_that_slept_while_its_next_versions_became_free_publishes_nothing(tmp_path: Path) -> None:
    sleeper = Writer(tmp_path).take_over().apply(100).publish()
    heir = Writer(tmp_path).take_over().apply(3).publish()
    heir.go_on()
    assert sleeper.checkpoints.version + 1 not in heir.checkpoints.versions()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for _ in range(2):
        sleeper.apply(2).publish()
        assert sleeper.stale
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    loaded = _load(tmp_path)
    assert loaded is not None and loaded.manifest.writer_epoch == heir.checkpoints.epoch
    _assert_whole(tmp_path, [sleeper, heir])


@pytest.mark.parametrize("steps", range(6))
def test_an_owner_that_sleeps_at_any_step_of_a_publish_damages_nothing(
    new_root: Callable[[], Path], steps: int
) -> None:
    root = new_root()
    sleeper = Writer(root).take_over().apply(40).publish().apply(5)
    heir = Writer(root)
    turns.run([sleeper.publish, lambda: heir.take_over().go_on()], [0] * steps + [1] * 500)
    assert not heir.stale
    assert sleeper.committed[-1] <= heir.started[0][1]
    assert all(heir.checkpoints.read(v).writer_epoch == 2 for v in heir.checkpoints.versions())
    heir.go_on(1)
    _assert_whole(root, [sleeper, heir])


# Whatever a publication does with a disk that others may see: reading back what it wrote, too.
EVERY_KIND = ("listing", "reading", "writing", "creating", "link", "mkdir", "opening", "fsync", "looking for")


@pytest.mark.parametrize("steps", range(28))
def test_an_owner_whose_files_an_heir_removes_as_it_writes_them_is_told_that_it_is_stale(
    new_root: Callable[[], Path], steps: int
) -> None:
    root = new_root()
    sleeper = Writer(root).take_over().apply(40).publish().apply(5)
    heir = Writer(root)
    turns.run([sleeper.publish, lambda: heir.take_over().go_on()], [0] * steps + [1] * 2_000, EVERY_KIND)
    assert not heir.stale
    heir.go_on(1)
    _assert_whole(root, [sleeper, heir])


@pytest.mark.parametrize("steps", range(7))
def test_who_sleeps_at_any_step_of_a_claim_takes_over_all_or_nothing(new_root: Callable[[], Path], steps: int) -> None:
    root = new_root()
    owner, other, sleeper = Writer(root).take_over().apply(40).publish(), Writer(root), Writer(root)
    done: list[str] = []

    def claim() -> None:
        sleeper.try_to_take_over()
        done.append("sleeper")

    def go_on() -> None:
        owner.apply(3).go_on()  # as if it was not fenced yet, or is
        other.take_over().go_on()
        done.append("other")

    turns.run([claim, go_on], [0] * steps + [1] * 500)
    _assert_whole(root, [owner, other, sleeper])
    if done == ["other", "sleeper"] and not sleeper.stale:
        assert sleeper.started[-1] == (sleeper.checkpoints.epoch, other.committed[-1])
        assert sleeper.checkpoints.epoch > other.checkpoints.epoch
    if not sleeper.stale:
        sleeper.apply(3).publish()
    assert [sleeper.stale, other.apply(1).publish().stale].count(False) == 1
    epochs = [owner.checkpoints.read(v).writer_epoch for v in owner.checkpoints.versions()]
    assert epochs == sorted(epochs)


def test_an_owner_publishes_before_the_heir_takes_over_or_not_at_all_in_any_order(
    new_root: Callable[[], Path],
) -> None:
    taken = (0, 0)
    for order in turns.orders(4, 6):
        root = new_root()
        owner, heir = Writer(root).take_over().apply(10).publish().apply(5), Writer(root)
        steps = turns.run([owner.publish, heir.take_over], [0, 1, *order])
        taken = max(taken[0], steps[0]), max(taken[1], steps[1])
        assert heir.view.partitions[0].position >= owner.committed[-1]
        assert owner.stale or heir.view.partitions[0].position == 15
        heir.apply(5).publish()
        owner.apply(5).publish()
        assert owner.stale and not heir.stale
        _assert_whole(root, [owner, heir])
    assert min(taken) >= 4


@pytest.mark.parametrize("published", [False, True])
def test_of_two_who_take_over_at_once_in_any_order_the_last_to_claim_owns_it(
    new_root: Callable[[], Path], published: bool
) -> None:
    for order in turns.orders(5, 5):
        root = new_root()
        if published:
            Writer(root).take_over().apply(10).publish()
        writers = [Writer(root), Writer(root)]
        turns.run([writer.try_to_take_over for writer in writers], order)
        for writer in writers:
            if not writer.stale:
                writer.apply(3).publish()
        assert [writer.stale for writer in writers].count(False) == 1
        epochs = [epoch for writer in writers for epoch, _ in writer.started]
        assert len(set(epochs)) == len(epochs)
        _assert_whole(root, writers)


def test_of_eight_who_take_over_at_once_each_epoch_has_one_and_the_last_owns_it(tmp_path: Path) -> None:
    Writer(tmp_path).take_over().apply(10).publish()
    writers = [Writer(tmp_path) for _ in range(8)]
    start = threading.Barrier(len(writers))

    def take_over(writer: Writer) -> None:
        start.wait()
        writer.try_to_take_over()

    threads = [threading.Thread(target=take_over, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        if not writer.stale:
            writer.apply(1).publish()
    owners = [writer.checkpoints.epoch for writer in writers if not writer.stale]
    assert len(owners) == 1
    epochs = [epoch for writer in writers for epoch, _ in writer.started]
    assert len(set(epochs)) == len(epochs)
    assert owners[0] == max(epoch for path in tmp_path.rglob("epoch-*") if (epoch := mark_epoch(path.name)))
    _assert_whole(tmp_path, writers)
