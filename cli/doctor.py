"""`tidemark doctor`: looks at a deployment from outside, and says of each thing whether it is well and what to do.

It asks the brokers and reads the checkpoint directory; services need not run. Nothing is changed, but by `repair`,
which deletes older copies of ids that are in two partitions.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from confluent_kafka import KafkaException, Producer

from cli.exits import NotFound, WrongUsage
from cli.generations import check_collection
from cli.placement import Placement, examine
from tidemark import generation
from tidemark import id as ids
from tidemark.caught_up import now_ms
from tidemark.checkpoint import Checkpoints, partitions
from tidemark.collection import Collection
from tidemark.errors import BrokerUnreachable, TidemarkError
from tidemark.kafka_settings import producer_settings
from tidemark.log_check import LogBounds, check_log
from tidemark.manifest import Manifest, TopicIdentity
from tidemark.partitioner import partition_of
from tidemark.printable import printable
from tidemark.settings import Settings
from tidemark.topic import Topics

TIMEOUT_S = 5.0
SHOWN_MAX = 5
# A consumer may remove what a manifest names while it is read: then a newer one is there.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `do` says how to mend it when it is not well."""

    collection: str
    check: str
    well: bool
    message: str
    do: str = ""


@dataclass(slots=True)
class Examined:
    """A collection's findings, and where its ids are when that could be read."""

    collection: Collection
    findings: list[Finding]
    placement: Placement | None = None
    partitions: int = 0

    @property
    def well(self) -> bool:
        return all(finding.well for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "collection": self.collection.name,
            "well": self.well,
            "findings": [asdict(finding) for finding in self.findings],
            "ids_in_two_partitions": [
                {"id": ids.to_text(key, self.collection.id_format), "copies": [asdict(copy) for copy in copies]}
                for key, copies in (self.placement.doubled if self.placement else {}).items()
            ],
        }


def examined(settings: Settings, collection: Collection) -> Examined:
    """Everything that can be looked at; what depends on something that is not well is left out."""
    looking = _Looking(settings, collection)
    looking.all()
    return looking.found


class _NotWell(Exception):
    def __init__(self, message: str, do: str) -> None:
        super().__init__(message)
        self.do = do


class _Looking:
    """The checks of one collection, in the order in which one rests on another."""

    def __init__(self, settings: Settings, collection: Collection) -> None:
        self._collection, self.found = collection, Examined(collection, [])
        self._topics = Topics({"log_level": 0, **settings.kafka}, TIMEOUT_S)
        self._root = settings.checkpoint_root
        self._group = settings.consumer.group
        self._identity: TopicIdentity | None = None
        self._generation = ""
        self._checkpoints: dict[int, tuple[Path, Manifest]] = {}

    def all(self) -> None:
        if self._look("topic", self._topic):
            self._look("dead-letter topic", self._dead_letter_topic)
        if self._look("checkpoint directory", self._current) and self._look("manifests", self._manifests):
            if self._identity is not None:
                self._look("log", self._log)
                self._look("consumer", self._consumer)
                self._look("consumer runs", self._runs)
                self._look("consumer group", self._in_group)
            self._look("one id, one partition", self._placed)
            self._look("partitioner", self._partitioner)

    def _look(self, check: str, question: Callable[[], str]) -> bool:
        well, do = False, ""
        try:
            message, well = question(), True
        except _NotWell as error:
            message, do = str(error), error.do
        except TidemarkError as error:  # says itself what to do
            message = str(error)
        except (OSError, ValueError, KafkaException) as error:  # ValueError: a column that is not what it should be
            message = f"{type(error).__name__}: {error}"
        self.found.findings.append(Finding(self._collection.name, check, well, message, do))
        return well

    def _topic(self) -> str:
        topic = self._collection.topic
        self._identity = self._topics.identity(topic)
        self.found.partitions = self._identity.partitions
        kept = self._topics.tombstones_kept_ms(topic)
        policy = "is not compacted" if kept is None else f"is compacted, deletes are kept for {_duration(kept)}"
        return f"{topic!r} has {self._identity.partitions} partitions and {policy}"

    def _dead_letter_topic(self) -> str:
        topic = self._collection.dead_letters
        return f"{topic!r} has {self._topics.identity(topic).partitions} partitions"

    def _current(self) -> str:
        name = self._collection.name
        served = generation.current(self._root, name)
        if served is None:
            raise _NotWell(
                f"{self._root}: holds no checkpoint of {name!r}",
                "start the consumer; when it runs, compare its checkpoint.url with this one",
            )
        generation.read(self._root, name, served)
        self._generation = served
        return f"{self._root}: generation {served} is served"

    def _manifests(self) -> str:
        numbers = partitions(self._root, self._collection.name, self._generation)
        self._checkpoints = {number: found for number in numbers if (found := self._newest(number)) is not None}
        expected = self.found.partitions
        if unknown := [number for number in self._checkpoints if expected and number >= expected]:
            raise _NotWell(
                f"checkpoints of partitions {unknown}, the topic has {expected} partitions",
                "see whether bootstrap.servers and topic are the right ones",
            )
        if missing := sorted(set(range(expected)) - set(self._checkpoints)):
            raise _NotWell(f"no checkpoint of partitions {missing}", "see the consumer's log and `tidemark lag`")
        rows = sum(manifest.live_rows for _, manifest in self._checkpoints.values())
        oldest = min((manifest.created_ms for _, manifest in self._checkpoints.values()), default=0)
        age = max(0, now_ms() - oldest)
        return f"{len(self._checkpoints)} partitions, {rows} live rows, the oldest manifest is {_duration(age)} old"

    def _newest(self, partition: int) -> tuple[Path, Manifest] | None:
        checkpoints = Checkpoints(self._root, self._collection, self._generation, partition)
        for _ in range(TRIES):
            if not (versions := checkpoints.versions()):
                return None
            try:
                return checkpoints.directory, checkpoints.read(versions[-1])
            except FileNotFoundError:
                continue
        raise TidemarkError(f"{checkpoints.directory}: manifests vanish while they are read")

    def _log(self) -> str:
        assert self._identity is not None
        every = [(self._collection.topic, number) for number in self._checkpoints]
        starts, ends = self._topics.starts(every), self._topics.ends(every)
        kept_ms = self._topics.tombstones_kept_ms(self._collection.topic)
        for number, (_, manifest) in sorted(self._checkpoints.items()):
            partition = (self._collection.topic, number)
            check_log(manifest, partition, self._identity, LogBounds(starts[partition], ends[partition], kept_ms))
        return "it holds everything since each checkpoint"

    def _consumer(self) -> str:
        """What it left beside its committed offsets; the words say what to do."""
        every = [(self._collection.topic, number) for number in range(self.found.partitions)]
        committed = sorted(self._topics.committed(self._group, every).items())
        said = [(number, word) for (_, number), found in committed if (word := _said(found.metadata, "problem"))]
        if said:
            raise _NotWell("; ".join(f"of partition {number} it says: {word}" for number, word in said), "")
        return f"group {self._group!r} tells no problem of any partition"

    def _runs(self) -> str:
        """Nobody in the group is no problem while every record is in a checkpoint."""
        members = self._topics.members(self._group)
        ends = self._topics.ends([(self._collection.topic, number) for number in self._checkpoints])
        positions = {number: manifest.position for number, (_, manifest) in self._checkpoints.items()}
        waiting = sum(max(0, end - positions[number]) for (_, number), end in ends.items())
        if waiting and not members:
            raise _NotWell(
                f"nobody is in group {self._group!r}, and {waiting} offsets are in no checkpoint",
                "start the consumer; when it runs, compare its kafka.bootstrap.servers and consumer.group with these",
            )
        return f"group {self._group!r} has {members} in it, {waiting} offsets are in no checkpoint yet"

    def _in_group(self) -> str:
        """A checkpoint is made before its offset is committed: one that was committed beyond it is another's."""
        name, topic = self._group, self._collection.topic
        committed = self._topics.committed(name, [(topic, number) for number in self._checkpoints])
        for (_, number), at in sorted(committed.items()):
            newest = self._newest(number)
            if newest is None or _said(at.metadata, "generation") not in (None, self._generation):
                continue
            if at.offset > newest[1].position:
                raise _NotWell(
                    f"group {name!r} has committed offset {at.offset} of partition {number}, "
                    f"the newest checkpoint here is of {newest[1].position}",
                    "see whether another deployment with a checkpoint directory of its own is in this group, and takes "
                    "partitions away from this one: each needs its own consumer.group. Offsets set by hand do no harm",
                )
        return f"{name!r} has committed nothing that is in no checkpoint here"

    def _placed(self) -> str:
        placement = self.found.placement = self._examined()
        if not placement.doubled_count:
            return f"none of {placement.rows} rows has an id that is in another partition too"
        shown = "; ".join(self._shown(key) for key in list(placement.doubled)[:SHOWN_MAX])
        raise _NotWell(
            f"{placement.doubled_count} ids are in two partitions: {shown}",
            "have every producer of the topic use one partitioner (docs/format.md), then delete the copies where it "
            f"does not put them: `tidemark doctor {self._collection.name} --repair` says which it would",
        )

    def _examined(self) -> Placement:
        for _ in range(TRIES):
            try:
                return examine(self._checkpoints, self.found.partitions or len(self._checkpoints))
            except FileNotFoundError:
                newest = {number: self._newest(number) for number in self._checkpoints}
                self._checkpoints = {number: found for number, found in newest.items() if found is not None}
        raise TidemarkError(f"{self._root}: checkpoints vanish while they are read")

    def _shown(self, key: bytes) -> str:
        placement, collection = self.found.placement, self._collection
        assert placement is not None
        copies = ", ".join(f"partition {copy.partition} offset {copy.offset}" for copy in placement.doubled[key])
        belongs = partition_of(key, self.found.partitions or len(self._checkpoints), collection.partitioner)
        return f"{ids.to_text(key, collection.id_format)!a} in {copies} (belongs in {belongs})"

    def _partitioner(self) -> str:
        placement, ours = self.found.placement, self._collection.partitioner
        if placement is None:
            return "not looked at"
        if placement.fits[ours] == placement.looked_at:
            return f"{placement.looked_at} ids looked at are where {ours!r} puts them"
        fits = ", ".join(f"{name} {count}" for name, count in placement.fits.items())
        most = max(placement.fits, key=lambda name: placement.fits[name])
        do = f"most fit {most!r}: see which partitioner each producer uses, and whether partitions were added"
        if other := placement.explained_by:
            do = f'set collections.{self._collection.name}.partitioner = "{other}": it explains all of them'
        raise _NotWell(f"of {placement.looked_at} ids looked at, so many are where it would put them: {fits}", do)


def _duration(milliseconds: int) -> str:
    seconds = milliseconds / 1_000
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _said(metadata: str, name: str) -> str | None:
    """What the consumer says of a partition under a name; None where it says nothing, or others wrote the metadata."""
    try:
        word = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    found = word.get(name) if isinstance(word, dict) else None
    return found if isinstance(found, str) else None


# -- repair ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removal:
    """A copy to delete: the one in the partition it belongs in is newer."""

    key: bytes
    partition: int
    offset: int


def removals(found: Examined) -> tuple[list[Removal], int]:
    """The copies that may be deleted, and how many ids have none: their newest one is where it does not belong."""
    chosen, left = [], 0
    for key, copies in (found.placement.doubled if found.placement else {}).items():
        belongs = partition_of(key, found.partitions, found.collection.partitioner)
        newest = max((copy.timestamp_ms for copy in copies if copy.partition == belongs), default=-1)
        wrong = [copy for copy in copies if copy.partition != belongs]
        if all(copy.timestamp_ms < newest for copy in wrong):
            chosen += [Removal(key, copy.partition, copy.offset) for copy in wrong]
        else:
            left += 1
    return chosen, left


def remove(settings: Settings, collection: Collection, chosen: list[Removal]) -> None:
    """Produce a delete of each to the very partition; raises BrokerUnreachable unless all are acknowledged."""
    failed: list[str] = []
    producer = Producer({**producer_settings(settings.kafka, collection.partitioner), "log_level": 0})
    for one in chosen:
        while True:
            try:
                producer.produce(
                    collection.topic,
                    None,
                    one.key,
                    one.partition,
                    on_delivery=lambda error, _: failed.append(error.str()) if error else None,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if (left := producer.flush(30.0)) or failed:
        raise BrokerUnreachable(f"{left + len(failed)} deletes were not acknowledged ({failed[:1]}): run it again")


def repaired(settings: Settings, found: Examined, really: bool) -> Iterator[str]:
    """Say what is deleted, and do it when it is really meant. Raises NotFound when something is left to do."""
    if found.placement is None or not found.partitions:
        raise NotFound(f"{found.collection.name}: repair comes after the problems above")
    chosen, left = removals(found)
    for one in chosen:
        name = ids.to_text(one.key, found.collection.id_format)
        yield f"delete {name!a} in partition {one.partition} (offset {one.offset})"
    if really:
        remove(settings, found.collection, chosen)
    yield f"{len(chosen)} copies {'are' if really else 'would be'} deleted" + ("" if really else ": add --yes to do it")
    if left:
        raise NotFound(
            f"{left} ids are not touched, because their newest copy is in a partition that "
            f"{found.collection.partitioner!r} does not choose: produce these ids again, then repair"
        )


def lines(found: Examined) -> Iterator[str]:
    """For a person."""
    for finding in found.findings:
        yield f"{'ok     ' if finding.well else 'PROBLEM'}  {finding.collection}  {finding.check}: {finding.message}"
        if finding.do:
            yield f"         do: {finding.do}"


def run(settings: Settings, collection: str | None, repair: bool, really: bool, as_json: bool) -> bool:
    """The command: prints what was found; whether all is well, or was repaired."""
    if repair and (collection is None or as_json):
        raise WrongUsage("--repair works on one collection, and without --json: name it")
    if collection is not None:
        check_collection(settings, collection)
    chosen = settings.all_collections() if collection is None else [settings.collection(collection)]
    found = [examined(settings, one) for one in chosen]
    well = all(one.well for one in found)
    if as_json:
        typer.echo(json.dumps({"well": well, "collections": [one.to_json() for one in found]}))
        return well
    for one in found:
        for line in lines(one):
            typer.echo(printable(line))
    if repair:
        for line in repaired(settings, found[0], really):
            typer.echo(printable(line))
        return really or well
    return well
