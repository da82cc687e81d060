"""A follower: one thread that keeps the view of one generation of one collection as new as the log.

    open the newest checkpoints -> check them against the log -> read on from their positions -> follow newer manifests

All partitions are read together: what one fetch brings of them is decoded and applied at once, so the cost is by
records. Invariants: only this thread changes its view, and it never waits for a disk or a broker: checkpoints are
opened on a side thread (`openings.py`), rows are coded on another, `TopicWatch` asks the brokers; searches read the
view without locks. It writes nothing: no checkpoint, no offset. A partition that cannot follow says why and is tried
again; the others go on. `frozen`, `caught_up_once` and `replacement` are also set by `serving.py`'s thread. Anything
unexpected ends the follower as `failed`, and `serving.py` puts a new one beside it.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api.followed import Followed
from api.now_and_then import NowAndThen
from api.openings import Openings
from api.status import FollowerStatus, IndexStatus
from api.tail_memory import RESUME_SHARE, TailMemory
from api.two_partitions import TwoPartitions
from api.unbuilt import Unbuilt
from tidemark import service
from tidemark.collection import Collection
from tidemark.collection_index import CollectionIndex
from tidemark.errors import LogGap, TidemarkError
from tidemark.log import Fetched, Log, Partition
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.shared_memory import Document
from tidemark.topic_watch import TopicFacts, TopicWatch
from tidemark.view import View

logger = logging.getLogger(__name__)

POLL_S = 0.02
OPENING_POLL_S = 0.002
# A batch costs some 0.3 ms of interpreter lock however small it is, which searches wait for: while records come
# one by one, let them gather this long. It is what freshness costs; a backlog is not held up by it.
GATHER_S = 0.015
# Until it has caught up once nobody is sent here: larger batches are cheaper per record.
BACKLOG_BATCHES = 8
ENDS_EVERY_S = 0.05
PUBLISH_EVERY_S = 0.05
MOVE_EVERY_S = 1.0
MANIFESTS_EVERY_S = 0.25
# While catching up for the first time: taking a manifest over costs by the rows we are ahead.
BACKLOG_MANIFESTS_EVERY_S = 1.0
# To find that nothing is to be taken over takes less.
TAKEN_S = 0.001
STALL_S = 60.0
# How long it is not ready only because rows of checkpoints are in no lists yet.
SETTLED_S_MAX = 60.0
# While the index takes all the memory that it may, so many rows beyond it are compared by every search, and no more.
UNBUILT_ROWS_MAX = 131_072
# With a bound of so many rows it does not matter that some come between two looks at all partitions.
ROOMY_ROWS = 500_000


class Follower:
    """Follows one generation; `start` returns at once, `close` waits for the thread."""

    def __init__(self, settings: Settings, collection: Collection, generation: str, watch: TopicWatch) -> None:
        self.collection = collection
        self.generation = generation
        self.failed = False
        self.frozen = False
        self.caught_up_once = False
        self.turned_at = time.monotonic()
        self.watch = watch
        self.replacement: str | None = None  # the generation that is to take our place; set by `serving.py`
        self.document = Document()
        self.view = View(collection, shared=True)
        parameters = collection.index
        self.index = CollectionIndex(
            self.view, parameters.recall_target, parameters.ann_rows_min, settings.api.index_bytes_max
        )
        self._settings = settings
        self._by_name: dict[Partition, Followed] = {}
        self._closing = threading.Event()
        self._seen: tuple[TopicIdentity | None, str | None] = (None, None)
        self._memory = TailMemory(settings.api.tail_bytes_max)
        self.openings = Openings(settings.checkpoint_root, generation, self.view, self.index, self._memory, self._meet)
        self._two_partitions = TwoPartitions()
        self._now_and_then = NowAndThen()
        self._warned: dict[str, float] = {}
        self._settling_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow-{collection.name}-{generation}", daemon=True)

    @property
    def partitions(self) -> tuple[Followed, ...]:
        return self.openings.partitions

    def _meet(self, number: int) -> Followed:
        rows_max, root = self._settings.api.tail_rows_max, self._settings.checkpoint_root
        followed = Followed(self.view, root, self.generation, number, self.watch, rows_max, self._memory)
        followed.replacement = self.replacement
        self._by_name[followed.partition] = followed
        return followed

    @property
    def error(self) -> str | None:
        """What keeps it from following the log and will not pass by waiting, None when nothing does."""
        if self.failed:
            return "the follower failed, the service's log says why; it is started again"
        return next((followed.problem for followed in self.partitions if followed.problem), None)

    @property
    def problem(self) -> str | None:
        """Everything worth saying: an error, a wait, brokers that do not answer, an index that may not grow."""
        trouble = next((followed.trouble for followed in self.partitions if followed.trouble), None)
        opening = None if self.openings.served else "opening the newest checkpoint"
        known = self.error or self.openings.unreadable or self.watch.problem
        return known or opening or trouble or self.index.problem

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        self.openings.close()  # last: a turn under way may give them work
        self.index.close()

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        service.give_way(service.FOLLOWER_NICE)
        log: Log | None = None
        try:
            service.run_on(self._settings.api.follower_cpus)
            log = Log(self._settings.kafka)
            while not self._closing.is_set():
                self._turn(log)
        except Exception:
            self.failed = True
            logger.exception("follower of %s %s failed", self.collection.name, self.generation)
        finally:
            self._publish()
            if log is not None:
                log.close()

    def _turn(self, log: Log) -> None:
        self.turned_at = time.monotonic()
        if self.frozen:
            self._closing.wait(POLL_S)
        else:
            self._read_on(log)
        self._follow_checkpoints(log)
        if self.openings.served:
            self.openings.offer_quantizer()
            self.index.turn(may_train=self.caught_up_once and self.openings.quantizer is None)
        if self.caught_up_once and not self.frozen:
            self._two_partitions.turn(self.view)
            self._now_and_then.do("move", MOVE_EVERY_S, self.view.move_few)
        self._now_and_then.do("ends", ENDS_EVERY_S, lambda: self._look_at_partitions(log))
        self._now_and_then.do("publish", PUBLISH_EVERY_S, self._publish)

    def _read_on(self, log: Log) -> None:
        most = self._settings.api.fetch_records * (1 if self.caught_up_once else BACKLOG_BATCHES)
        fetched = log.fetch(most, POLL_S if self.caught_up_once else OPENING_POLL_S)
        self._take(fetched, log)
        if self.caught_up_once and fetched.records < most // 2:
            self._closing.wait(GATHER_S)

    def _follow_checkpoints(self, log: Log) -> None:
        """Taking over takes a quarter of the time at most: it costs by the rows we are ahead."""
        facts, served = self.watch.facts, self.openings.served
        looking_took = self.openings.load_found(facts)
        began = time.thread_time()
        self.openings.take_opened(log, facts)
        every = MANIFESTS_EVERY_S if self.caught_up_once or not served else BACKLOG_MANIFESTS_EVERY_S
        taking_took = time.thread_time() - began
        if looking_took or taking_took > TAKEN_S:
            self._now_and_then.rest("manifests", 3 * taking_took, looking_took)
        self._now_and_then.do("manifests", every, self.openings.look)

    def _publish(self) -> None:
        for followed in self.partitions:
            followed.note_since_when()
        unbuilt = Unbuilt.rows_of(self.view, self.index)
        self._note_bound(int(unbuilt.row_counts.sum()))
        status = FollowerStatus(
            generation=self.generation,
            served=self.openings.served,
            caught_up_once=self.caught_up_once,
            error=self.error,
            problem=self.problem,
            turned_at=self.turned_at,
            ids_in_two_partitions=self._two_partitions.count,
            view=self.view.place,
            parameters=self.view.collection.index,
            index=self._index_status(),
            partitions=[followed.status(unbuilt) for followed in sorted(self.partitions, key=lambda f: f.number)],
        )
        self.document.write(msgspec.json.encode(status))

    def _index_status(self) -> IndexStatus | None:
        lists = self.index.lists
        if lists is None:
            return None
        parameters = lists.parameters
        return IndexStatus(
            version=self.index.version or 0,
            entries=lists.entries,
            dead=lists.dead,
            bytes=lists.memory_bytes,
            recall=parameters.recall,
            lists=lists.place.lists,
            probed=parameters.effort,
            k_factor=parameters.k_factor,
        )

    def _note_bound(self, unbuilt_rows: int) -> None:
        """While the index may not grow, what every search compares beyond it may not grow without bound either."""
        allowed = UNBUILT_ROWS_MAX * (1.0 if self._memory.full is None else RESUME_SHARE)
        self._memory.full = self.index.problem if unbuilt_rows > allowed else None

    # -- records -------------------------------------------------------------------------------------------

    def _take(self, fetched: Fetched, log: Log) -> None:
        runs: dict[int, Sequence[Any]] = {}
        stopped = {self._by_name[partition]: gap for partition, gap in fetched.stopped.items()}
        for partition, messages in fetched.messages.items():
            followed = self._by_name[partition]
            try:
                if left := followed.not_applied(messages):
                    runs[followed.number] = left
            except LogGap as error:
                stopped[followed] = error
        if runs:
            self._apply(runs)
        if not self._memory.is_roomy or self._settings.api.tail_rows_max < ROOMY_ROWS:
            for partition in fetched.messages:  # else it is enough that all of them are looked at now and then
                self._by_name[partition].hold_back(log)
        for partition, end in fetched.ends.items():
            try:
                self._by_name[partition].advance(end)
            except LogGap as error:
                stopped[self._by_name[partition]] = error
        for followed, gap in stopped.items():
            self._refuse(followed, gap, log)
        for warning in fetched.warnings:
            self._warn(warning)

    def _apply(self, runs: Mapping[int, Sequence[Any]]) -> None:
        """Apply runs of messages by partition, all of them together."""
        fetched_at, topic = time.time(), self.collection.topic
        batch, bad = decode(runs, self.collection)
        for record in bad:  # the consumer writes the dead letters
            self._by_name[topic, record.message.partition() or 0].bad_records += 1
        self.view.apply(batch)
        self._two_partitions.offer(batch)
        if self.caught_up_once:
            now = time.time()
            for number, messages in runs.items():
                oldest_ms, newest_ms = messages[0].timestamp()[1], batch.newest_timestamps[number]
                self._by_name[topic, number].freshness.observe(oldest_ms, newest_ms, fetched_at, now)

    def _refuse(self, followed: Followed, error: TidemarkError, log: Log) -> None:
        followed.stop_reading(log)
        followed.refuse(str(error))
        self.watch.ask_identity_now()

    def _warn(self, warning: str) -> None:
        """The client repeats itself while a broker is away: say each thing once a minute."""
        now = time.monotonic()
        if now >= self._warned.get(warning, 0.0):
            self._warned = {text: until for text, until in self._warned.items() if until > now}
            self._warned[warning] = now + 60.0
            logger.warning("kafka: %s", warning)

    # -- the log -------------------------------------------------------------------------------------------

    def _look_at_partitions(self, log: Log) -> None:
        facts = self.watch.facts
        self._note_changes(facts)
        for followed in self.partitions:
            followed.hold_back(log)
            try:
                if facts is not None:
                    followed.check_log(facts)
                if facts is not None and followed.may_start(time.monotonic()):
                    followed.start_reading(log, facts)
            except TidemarkError as error:
                self._refuse(followed, error, log)
            followed.note_end(log, facts)
            self._wake_if_stalled(followed, log)
        self._note_caught_up()

    def _note_changes(self, facts: TopicFacts | None) -> None:
        """When the topic or the generation wanted is another, what was refused is tried and told again at once."""
        found = (facts.identity if facts else self._seen[0], self.replacement)
        if found != self._seen:
            self._seen = found
            for followed in self.partitions:
                followed.replacement = self.replacement
                followed.try_again_now()

    def _wake_if_stalled(self, followed: Followed, log: Log) -> None:
        """Read a partition again from our position when its end moves on but nothing arrives."""
        now = time.monotonic()
        if not followed.reading or self.frozen or not followed.offset_lag:
            followed.behind_since = None
            return
        followed.behind_since = followed.behind_since or now  # after a long silence the first record is not late
        silent = now - max(followed.behind_since, followed.last_record_at)
        if silent > STALL_S:
            logger.error("%s[%d]: behind and nothing fetched for %.0f s; reading again", *followed.partition, silent)
            followed.behind_since = now
            log.restart(followed.start)

    def _note_caught_up(self) -> None:
        if self.caught_up_once or not self.openings.served or not self.partitions:
            return
        allowed, facts = self._settings.api.ready_max_lag, self.watch.facts
        all_known = facts is not None and len(self.partitions) >= facts.identity.partitions
        if all_known and all(
            f.reading and (lag := f.offset_lag) is not None and lag <= allowed for f in self.partitions
        ):
            self._settling_since = self._settling_since or time.monotonic()
            late = time.monotonic() - self._settling_since > SETTLED_S_MAX
            self.caught_up_once = self.index.settled or late
