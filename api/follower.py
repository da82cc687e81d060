"""A follower: one thread that keeps the views of one generation of one collection as new as the log.

    open the newest checkpoint -> check it against the log -> read on from its position -> follow newer manifests

Invariants: only this thread changes its views, and it never waits for a disk or a broker: manifests are opened
and verified on a side thread, codes of rows in memory are made on another, `TopicWatch` asks the brokers;
searches read the views without locks. It writes nothing: no checkpoint, no offset. A partition that cannot follow
says why and is tried again; the others go on. Anything unexpected ends the follower as `failed`, and `serving.py`
puts a new one beside it.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from api.followed import Followed
from api.status import FollowerStatus
from api.tail_memory import TailMemory
from api.two_partitions import TwoPartitions
from tidemark import service
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.errors import LogGap, StoreUnavailable, TidemarkError
from tidemark.log import Fetched, Log, Partition
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.shared_memory import Document
from tidemark.topic_watch import TopicFacts, TopicWatch

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
MANIFESTS_EVERY_S = 0.25
# While catching up for the first time: taking a manifest over costs by the rows we are ahead.
BACKLOG_MANIFESTS_EVERY_S = 1.0
STALL_S = 60.0


class Follower:
    """Follows one generation; `start` returns at once, `close` waits for the thread."""

    def __init__(self, settings: Settings, collection: Collection, generation: str, watch: TopicWatch) -> None:
        self.collection = collection
        self.generation = generation
        self.partitions: tuple[Followed, ...] = ()
        self.failed = False
        self.frozen = False
        self.caught_up_once = False
        self.turned_at = time.monotonic()
        self.watch = watch
        self.replacement: str | None = None  # the generation that is to take our place; set by `serving.py`
        self.document = Document()
        self._settings = settings
        self._root: Path = settings.checkpoint_root
        self.served = False
        self._published: list[tuple[int, int]] = []
        self._by_name: dict[Partition, Followed] = {}
        self._closing = threading.Event()
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open-segments")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="codes")
        self._encoding: Future[None] | None = None
        self._looking: Future[dict[int, int]] | None = None
        self._unreadable: str | None = None
        self._newest: dict[int, int] = {}
        self._seen: tuple[TopicIdentity | None, str | None] = (None, None)
        self._memory = TailMemory(settings.api.tail_bytes_max)
        self._two_partitions = TwoPartitions()
        self._due: dict[str, float] = {}
        self._warned: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=f"follow-{collection.name}-{generation}", daemon=True)

    @property
    def error(self) -> str | None:
        """What keeps it from following the log and will not pass by waiting, None when nothing does."""
        if self.failed:
            return "the follower failed, the service's log says why; it is started again"
        return next((followed.problem for followed in self.partitions if followed.problem), None)

    @property
    def problem(self) -> str | None:
        """Everything worth saying: an error, a wait, brokers that do not answer."""
        trouble = next((followed.trouble for followed in self.partitions if followed.trouble), None)
        opening = None if self.served else "opening the newest checkpoint"
        return self.error or self._unreadable or self.watch.problem or opening or trouble

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        for pool in (self._opener, self._encoder):  # last: a turn under way may give them work
            pool.shutdown(wait=False, cancel_futures=True)

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
            most = self._settings.api.fetch_records * (1 if self.caught_up_once else BACKLOG_BATCHES)
            fetched = log.fetch(most, POLL_S if self.served else OPENING_POLL_S)
            self._take(fetched, log)
            self._publish_if_changed()
            if self.caught_up_once:
                self._give_codes()
            if self.served and fetched.records < most // 2:
                self._closing.wait(GATHER_S)
        self._open_found()
        self._take_opened(log)
        if self.caught_up_once and not self.frozen:
            self._two_partitions.turn({f.partition[1]: f.view for f in self.partitions if f.opened})
        every = MANIFESTS_EVERY_S if self.caught_up_once or not self.served else BACKLOG_MANIFESTS_EVERY_S
        self._now_and_then("manifests", every, self._look_for_manifests)
        self._now_and_then("ends", ENDS_EVERY_S, lambda: self._look_at_partitions(log))
        self._publish_if_changed()

    def _publish_if_changed(self) -> None:
        """Tell the workers, at each new position and now and then."""
        positions = [followed.state for followed in self.partitions]
        if positions != self._published or time.monotonic() >= self._due.get("publish", 0.0):
            self._due["publish"] = time.monotonic() + PUBLISH_EVERY_S
            self._published = positions
            self._publish()

    def _publish(self) -> None:
        for followed in self.partitions:
            followed.note_since_when()
        status = FollowerStatus(
            generation=self.generation,
            served=self.served,
            caught_up_once=self.caught_up_once,
            error=self.error,
            problem=self.problem,
            turned_at=self.turned_at,
            ids_in_two_partitions=self._two_partitions.count,
            partitions=[followed.status for followed in sorted(self.partitions, key=lambda f: f.partition)],
        )
        self.document.write(msgspec.json.encode(status))

    def _now_and_then(self, what: str, interval_s: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now >= self._due.get(what, 0.0):
            self._due[what] = now + interval_s
            action()

    # -- records -------------------------------------------------------------------------------------------

    def _take(self, fetched: Fetched, log: Log) -> None:
        stopped = {self._by_name[partition]: gap for partition, gap in fetched.stopped.items()}
        for partition, messages in fetched.messages.items():
            followed = self._by_name[partition]
            try:
                self._apply(followed, messages)
            except LogGap as error:
                stopped[followed] = error
            followed.hold_back(log)
        for partition, end in fetched.ends.items():
            try:
                self._by_name[partition].advance(end)
            except LogGap as error:
                stopped[self._by_name[partition]] = error
        for followed, gap in stopped.items():
            followed.stop_reading(log)
            followed.refuse(str(gap))
            self.watch.ask_identity_now()
        for warning in fetched.warnings:
            self._warn(warning)

    def _apply(self, followed: Followed, messages: list[Any]) -> None:
        view = followed.view
        followed.check_age()
        followed.at_end = False
        followed.last_record_at = time.monotonic()
        if messages[0].offset() < view.position:
            messages = [message for message in messages if message.offset() >= view.position]
            if not messages:
                return
        fetched_at = time.time()
        batch, bad = decode({followed.partition[1]: messages}, self.collection)
        followed.bad_records += len(bad)  # the consumer writes the dead letters
        view.apply(batch)
        self._two_partitions.offer(followed.partition[1], batch)
        followed.publish()
        newest = batch.newest_timestamps[followed.partition[1]]
        followed.freshness.observe(messages[0].timestamp()[1], newest, fetched_at, self.caught_up_once)

    def _give_codes(self) -> None:
        """Have the rows in memory coded, some at a time, on a side thread: training takes 0.2 s."""
        if self._encoding is not None and not self._encoding.done():
            return
        if self._encoding is not None:
            self._encoding.result()
        wanted = [(f.view.uncoded, work) for f in self.partitions if (work := f.view.codes_wanted())]
        self._encoding = self._encoder.submit(max(wanted, key=itemgetter(0))[1]) if wanted else None

    def _warn(self, warning: str) -> None:
        """The client repeats itself while a broker is away: say each thing once a minute."""
        now = time.monotonic()
        if now >= self._warned.get(warning, 0.0):
            self._warned = {text: until for text, until in self._warned.items() if until > now}
            self._warned[warning] = now + 60.0
            logger.warning("kafka: %s", warning)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _look_for_manifests(self) -> None:
        """Have the side thread look: the disk may take its time."""
        if self._looking is None:
            self._looking = self._opener.submit(self._look)

    def _open_found(self) -> None:
        """Meet new partitions, on disk or in the topic, and open what is newer than what we have."""
        if self._looking is None or not self._looking.done():
            return
        looking, self._looking = self._looking, None
        try:
            on_disk = looking.result()
        except (OSError, StoreUnavailable) as error:
            self._unreadable = f"checkpoints cannot be looked for: {error}"
            return
        facts = self.watch.facts
        self._unreadable, self._newest = None, dict.fromkeys(facts.starts if facts else (), 0) | on_disk
        for number in sorted(self._newest.keys() - {followed.partition[1] for followed in self.partitions}):
            self._meet(number)
        for followed in self.partitions:
            newest = self._newest.get(followed.partition[1], 0)
            waits = followed.opening or followed.announced or time.monotonic() < followed.open_retry_at
            # A lower one: the directory was restored or begun again.
            if not waits and (not followed.opened or newest not in (0, followed.version)):
                followed.opening = self._opener.submit(followed.checkpoints.load, followed.verified)

    def _look(self) -> dict[int, int]:
        """The newest version of each partition on disk, 0 where there is none yet."""
        directory = self._root / self.collection.name / self.generation
        found = directory.glob("p*") if directory.is_dir() else []
        numbers = [int(path.name[1:]) for path in found if path.name[1:].isdecimal()]
        versions = {
            number: Checkpoints(self._root, self.collection, self.generation, number).versions() for number in numbers
        }
        return {number: found[-1] if found else 0 for number, found in versions.items()}

    def _meet(self, number: int) -> None:
        rows_max = self._settings.api.tail_rows_max
        followed = Followed(self.collection, self._root, self.generation, number, self.watch, rows_max, self._memory)
        followed.replacement = self.replacement
        self._by_name[followed.partition] = followed
        self.partitions = (*self.partitions, followed)

    def _take_opened(self, log: Log) -> None:
        """Take over what was opened and announced; a quarter of the time at most, it costs by the rows we are ahead."""
        started = time.monotonic()
        for followed in self.partitions:
            if followed.announced is not None and started >= followed.announced[0]:
                loaded, followed.announced = followed.announced[1], None
                self._take_over(followed, loaded, log)
            elif followed.opening is not None and followed.opening.done():
                opening, followed.opening = followed.opening, None
                try:
                    found = opening.result()
                except (TidemarkError, OSError) as error:
                    self._not_opened(followed, error)
                    continue
                if found is None:
                    self._open_empty(followed)
                elif not followed.announce(found):
                    self._take_over(followed, found, log)
        ended = time.monotonic()
        self._due["manifests"] = max(self._due.get("manifests", 0.0), ended + 3 * (ended - started))

    def _take_over(self, followed: Followed, loaded: Loaded, log: Log) -> None:
        try:
            if followed.take(loaded) and followed.reading:
                log.restart(followed.start)
                followed.at_end = False
        except (TidemarkError, OSError) as error:
            self._not_opened(followed, error)
        self._note_opened()

    def _open_empty(self, followed: Followed) -> None:
        if self.watch.facts is not None and not followed.opened:
            followed.open_empty(self.watch.facts)
        self._note_opened()

    def _not_opened(self, followed: Followed, error: Exception) -> None:
        """What is served stays; what may pass is tried again."""
        passing = isinstance(error, OSError | StoreUnavailable)
        followed.not_opened(error, self._newest.get(followed.partition[1], 0), final=not passing)
        self._note_opened()

    def _note_opened(self) -> None:
        """Serve once every partition known is open or has said why not: never a part as if it were all."""
        self.served = self.served or all(f.opened or f.problem for f in self.partitions)

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
                followed.stop_reading(log)
                followed.refuse(str(error))
                self.watch.ask_identity_now()
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
        silent = time.monotonic() - followed.last_record_at
        if followed.reading and not self.frozen and followed.offset_lag and silent > STALL_S:
            logger.error("%s[%d]: behind and nothing fetched for %.0f s; reading again", *followed.partition, silent)
            followed.last_record_at = time.monotonic()
            log.restart(followed.start)

    def _note_caught_up(self) -> None:
        if not self.caught_up_once and self.served and self.partitions:
            allowed = self._settings.api.ready_max_lag
            facts = self.watch.facts
            all_known = facts is not None and len(self.partitions) >= facts.identity.partitions
            self.caught_up_once = all_known and all(
                f.reading and (lag := f.offset_lag) is not None and lag <= allowed for f in self.partitions
            )
