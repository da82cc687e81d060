"""How the checkpoints and quantizers that consumers make get into a follower's view: found, opened, announced, taken.

    look:      which versions are on disk, for all partitions at once
    load:      open a newer checkpoint; its files are verified
    announce:  give its segments row numbers; other processes open them, and the index codes them
    take over: search them in the place of what they hold

Invariants: looking and loading are done by a side thread, everything else by the follower's, which waits for no disk.
A partition has one checkpoint under way at a time. Whatever cannot be opened, what is served stays, and says why.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from api.followed import Announced, Followed, Opened, WouldGrow
from api.tail_memory import TailMemory
from tidemark import generation as generations
from tidemark.checkpoint import Checkpoints, partitions
from tidemark.collection import Collection, IndexParameters
from tidemark.collection_index import CollectionIndex
from tidemark.errors import StoreUnavailable, TidemarkError
from tidemark.log import Log
from tidemark.quantizers import Quantizers, Versioned
from tidemark.segment import Segment
from tidemark.topic_watch import TopicFacts
from tidemark.view import View

# HTTP workers look for new segments every 10 ms, and open one in a few.
ANNOUNCED_S = 0.1
# A checkpoint is taken over although rows of it are in no lists yet when coding them takes longer.
CODED_S_MAX = 30.0
# Until so long after it was found a newer quantizer waits for the consumers to code all segments by it.
QUANTIZER_WAITS_S = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """What is on disk: the newest version of each partition (0: none yet), and a quantizer not seen before.

    `parameters`: how the generation is indexed, while that was not known and if it can be read.
    `took_s`: time of the processor that it took to look.
    """

    versions: dict[int, int]
    quantizer: Versioned | None
    parameters: IndexParameters | None
    took_s: float


class Openings:
    """One follower's; `meet` makes a `Followed` of a partition that was not known.

    `served`: every known partition is open or has said why not. `unreadable`: why looking failed.
    """

    def __init__(
        self,
        root: Path,
        generation: str,
        view: View,
        index: CollectionIndex,
        memory: TailMemory,
        meet: Callable[[int], Followed],
    ) -> None:
        self.partitions: tuple[Followed, ...] = ()
        self.served = False
        self.unreadable: str | None = None
        self.quantizer: Versioned | None = None  # the newest one on disk
        self._collection: Collection = view.collection
        self._root, self._generation = root, generation
        self._view, self._index, self._memory, self._meet = view, index, memory, meet
        self._quantizers = Quantizers(root, view.collection, generation)
        self._parameters_known = False
        self._waiting: tuple[float, Versioned] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="open-segments")
        self._looking: Future[Found] | None = None
        self._newest: dict[int, int] = {}
        self._under_way: tuple[Followed, ...] = ()  # being loaded, or announced

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- look and load -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Have the side thread look, unless it does: the disk may take its time."""
        if self._looking is None:
            self._looking = self._pool.submit(self._look, self.quantizer)

    def _look(self, known: Versioned | None) -> Found:
        began = time.thread_time()
        versions = {}
        for number in partitions(self._root, self._collection.name, self._generation):
            written = Checkpoints(self._root, self._collection, self._generation, number).versions()
            versions[number] = written[-1] if written else 0
        quantizer = self._quantizers.newest(known)
        parameters = None if self._parameters_known else self._parameters()
        return Found(versions, quantizer, parameters, time.thread_time() - began)

    def _parameters(self) -> IndexParameters | None:
        try:
            return generations.read(self._root, self._collection.name, self._generation).index
        except (TidemarkError, OSError):  # the first consumer has not made it yet, or others say what is wrong
            return None

    def load_found(self, facts: TopicFacts | None) -> float:
        """Meet new partitions, on disk or in the topic, and open what is newer than what we have.

        Returns the time of the processor that looking took, if it has ended since the call before, else 0.
        """
        if self._looking is None or not self._looking.done():
            return 0.0
        looking, self._looking = self._looking, None
        try:
            found = looking.result()
        except (OSError, StoreUnavailable) as error:
            self.unreadable = f"checkpoints cannot be looked for: {error}"
            return 0.0
        if found.parameters is not None:
            self._use(found.parameters)
        self.unreadable, self._newest = None, dict.fromkeys(facts.starts if facts else (), 0) | found.versions
        met = {followed.number for followed in self.partitions}
        self.partitions += tuple(self._meet(number) for number in sorted(self._newest.keys() - met))
        for followed in self.partitions:
            self._load_if_newer(followed)
        if found.quantizer is not None:
            self.quantizer = found.quantizer
            self._waiting = time.monotonic(), found.quantizer
        return found.took_s

    def _use(self, parameters: IndexParameters) -> None:
        """The settings may have changed since the generation was made: only a replay builds by them."""
        self._parameters_known = True
        self._view.collection = dataclasses.replace(self._view.collection, index=parameters)
        self._index.use(parameters)

    def _load_if_newer(self, followed: Followed) -> None:
        newest = self._newest.get(followed.number, 0)
        waits = followed.opening or followed.announced or time.monotonic() < followed.open_retry_at
        # A lower one: the directory was restored or begun again.
        if not waits and (not followed.opened or newest not in (0, followed.version)):
            followed.opening = self._pool.submit(followed.load, may_grow=self._memory.full is None)
            self._under_way += (followed,)

    # -- quantizers ----------------------------------------------------------------------------------------

    def offer_quantizer(self) -> None:
        """Give the index a newer quantizer once the consumers have coded our segments by it, or have not for long.

        The first one it gets at once, and one in the place of its own.
        """
        if self._waiting is None:
            return
        since, (version, quantizer) = self._waiting
        late = time.monotonic() - since > QUANTIZER_WAITS_S
        entries = [segment.entry for segment in self._view.segments]
        coded = all(e.quantizer > version or e.is_coded_by(version, quantizer.identity) for e in entries)
        if late or coded or not self._index.version:
            self._index.offer(version, quantizer)
            self._waiting = None

    # -- announce and take over ----------------------------------------------------------------------------

    def take_opened(self, log: Log, facts: TopicFacts | None) -> None:
        """Announce what was opened, and take over what was announced long enough."""
        for followed in self._under_way:
            if followed.announced is not None:
                if self._is_ready(followed.announced):
                    self._take_announced(followed, followed.announced, log)
            elif followed.opening is not None and followed.opening.done():
                self._take_opened(followed, log, facts)
        if self._under_way:
            self._under_way = tuple(f for f in self._under_way if f.opening or f.announced)

    def _take_opened(self, followed: Followed, log: Log, facts: TopicFacts | None) -> None:
        assert followed.opening is not None
        opening, followed.opening = followed.opening, None
        try:
            opened = opening.result()
        except WouldGrow:
            followed.put_off()
        except (TidemarkError, OSError) as error:
            self._not_opened(followed, error)
        else:
            if opened is None:
                self._open_empty(followed, facts)
            elif not self._announce(followed, opened):
                self._take_over(followed, opened, log)

    def _announce(self, followed: Followed, opened: Opened) -> bool:
        """False when there is nothing to wait for: nothing is searched yet, or no segment comes newly."""
        coming = followed.coming(opened) if followed.opened else []
        if not coming:
            return False
        self._view.prepare(coming)
        followed.announced = Announced(time.monotonic(), opened, coming)
        self._tell_coming()
        return True

    def _tell_coming(self) -> None:
        coming: list[Segment] = []
        for followed in self._under_way:
            coming += followed.announced.coming if followed.announced else ()
        self._view.announce(coming)
        self._index.want(coming)

    def _is_ready(self, announced: Announced) -> bool:
        waited_s = time.monotonic() - announced.at
        return waited_s >= ANNOUNCED_S and (waited_s >= CODED_S_MAX or self._index.has(announced.coming))

    def _take_announced(self, followed: Followed, announced: Announced, log: Log) -> None:
        followed.announced = None
        self._take_over(followed, announced.opened, log)
        self._view.forget(announced.coming)  # those that were not taken after all
        self._tell_coming()

    def _take_over(self, followed: Followed, opened: Opened, log: Log) -> None:
        try:
            if followed.take(opened) and followed.reading:
                log.restart(followed.start)
                followed.at_end = False
        except (TidemarkError, OSError) as error:
            self._not_opened(followed, error)
        self._note_opened()

    def _open_empty(self, followed: Followed, facts: TopicFacts | None) -> None:
        if facts is not None and not followed.opened:
            followed.open_empty(facts)
        self._note_opened()

    def _not_opened(self, followed: Followed, error: Exception) -> None:
        """What is served stays; what may pass is tried again."""
        passing = isinstance(error, OSError | StoreUnavailable)
        followed.not_opened(error, self._newest.get(followed.number, 0), final=not passing)
        self._note_opened()

    def _note_opened(self) -> None:
        """Serve once every partition known is open or has said why not: never a part as if it were all."""
        self.served = self.served or all(f.opened or f.problem for f in self.partitions)
