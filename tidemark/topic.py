"""Asking the brokers about topics: which topic it is, where its log starts and ends, offsets by time.

Uses the admin client only, so any thread may ask. Answers are of the moment; nothing is cached. Raises
BrokerUnreachable with the addresses tried, and TopicMissing with what to do.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not name what it exports
    AdminClient,
    ConfigResource,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
)

from tidemark.errors import BrokerUnreachable, TopicMissing
from tidemark.kafka_settings import Settings, admin_settings
from tidemark.log import Committed, GroupOffsets, LogEnd, Partition
from tidemark.manifest import TopicIdentity

T = TypeVar("T")
_UNREACHABLE = {
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._AUTHENTICATION,
}
# No topic can have this name.
_NO_TOPIC = "?"
# What the caller of a question decides itself.
_TOPIC_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_ANSWERS = {*_TOPIC_MISSING, KafkaError.TOPIC_ALREADY_EXISTS}


class Topics:
    """The brokers' view of topics; `timeout_s` bounds every question."""

    def __init__(self, settings: Settings, timeout_s: float = 10.0) -> None:
        self._addresses = str(settings["bootstrap.servers"])
        self._timeout_s = timeout_s
        self._admin = AdminClient(admin_settings(settings))
        self._settings = settings
        self._groups: dict[str, GroupOffsets] = {}

    def _ask(self, what: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except KafkaException as error:
            if error.args[0].code() in _UNREACHABLE:
                raise BrokerUnreachable(
                    f"no broker at {self._addresses} answered within {self._timeout_s:g} s ({what}: "
                    f"{error.args[0].str()}): check kafka.bootstrap.servers, the network and security settings"
                ) from error
            if error.args[0].code() in _ANSWERS:
                raise
            # Leaders being elected, coordinators that load, missing permissions: all may pass.
            raise BrokerUnreachable(
                f"{what}: the brokers at {self._addresses} refuse: {error.args[0].str()}"
            ) from error

    def identity(self, topic: str) -> TopicIdentity:
        """Cluster id, topic id and number of partitions; raises TopicMissing."""

        def question() -> TopicIdentity:
            # Not by describe_cluster: it asks for no topic, a broker that is fenced names no broker, and librdkafka
            # 2.16 ends the process when an answer has neither. This is answered shortly, and creates no topic.
            cluster = self._admin.list_topics(_NO_TOPIC, timeout=self._timeout_s)
            described = self._admin.describe_topics(TopicCollection([topic]), request_timeout=self._timeout_s)[
                topic
            ].result()
            return TopicIdentity(cluster.cluster_id or "", str(described.topic_id), len(described.partitions))

        try:
            return self._ask(f"describing topic {topic!r}", question)  # type: ignore[no-any-return]
        except KafkaException as error:
            if error.args[0].code() in _TOPIC_MISSING:
                raise TopicMissing(
                    f"topic {topic!r} does not exist at {self._addresses}: create it (for example "
                    f"`kafka-topics.sh --create --topic {topic} --partitions 4`); only `tidemark up` creates topics"
                ) from error
            raise

    def exists(self, topic: str) -> bool:
        try:
            self.identity(topic)
        except TopicMissing:
            return False
        return True

    def create(self, topic: str, partitions: int, config: dict[str, str] | None = None) -> None:
        """Create a topic with the cluster's default replication; an existing one is left as it is."""
        new = NewTopic(topic, num_partitions=partitions, config=config or {})
        try:
            self._ask(f"creating topic {topic!r}", lambda: self._admin.create_topics([new])[topic].result())
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def starts(self, partitions: list[Partition]) -> dict[Partition, int]:
        """The first offset each log still holds."""
        return self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def ends(self, partitions: list[Partition]) -> dict[Partition, int]:
        """The offset after the last record a read-committed reader may see."""
        return {partition: end.offset for partition, end in self.ends_and_epochs(partitions).items()}

    def ends_and_epochs(self, partitions: list[Partition]) -> dict[Partition, LogEnd]:
        """The same with the newest leader epoch of each log."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        found = self._list_offsets(partitions, latest, IsolationLevel.READ_COMMITTED)
        return {
            partition: LogEnd(at.offset, -1 if at.leader_epoch is None else at.leader_epoch)
            for partition, at in found.items()
        }

    def acknowledged(self, partitions: list[Partition]) -> dict[Partition, int]:
        """The offset after the last record acknowledged; beyond `ends` they wait behind an open transaction."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        found = self._list_offsets(partitions, latest, IsolationLevel.READ_UNCOMMITTED)
        return {partition: at.offset for partition, at in found.items()}

    def at_time(self, partitions: list[Partition], timestamp_ms: int) -> dict[Partition, int | None]:
        """The first offset at or after a time; None when every record is older (brokers say END then)."""
        found = self._offsets(partitions, OffsetSpec.for_timestamp(timestamp_ms))
        return {partition: offset if offset >= 0 else None for partition, offset in found.items()}

    def _offsets(self, partitions: list[Partition], spec: OffsetSpec) -> dict[Partition, int]:
        found = self._list_offsets(partitions, spec, IsolationLevel.READ_COMMITTED)
        return {partition: at.offset for partition, at in found.items()}

    def _list_offsets(
        self, partitions: list[Partition], spec: OffsetSpec, isolation: IsolationLevel
    ) -> dict[Partition, ListOffsetsResultInfo]:
        if not partitions:
            return {}

        def question() -> dict[Partition, ListOffsetsResultInfo]:
            futures: dict[TopicPartition, Future[Any]] = self._admin.list_offsets(
                {TopicPartition(*partition): spec for partition in partitions},
                isolation_level=isolation,
                request_timeout=self._timeout_s,
            )
            return {(at.topic, at.partition): future.result() for at, future in futures.items()}

        return self._ask("listing offsets", question)  # type: ignore[no-any-return]

    def tombstones_kept_ms(self, topic: str) -> int | None:
        """How long a compacted topic keeps its deletes; None when it is not compacted."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        config = self._ask(
            f"reading the configuration of topic {topic!r}",
            lambda: self._admin.describe_configs([resource], request_timeout=self._timeout_s)[resource].result(),
        )
        if "compact" not in str(config["cleanup.policy"].value):
            return None
        return int(config["delete.retention.ms"].value)

    def committed(self, group: str, partitions: list[Partition]) -> dict[Partition, Committed]:
        """The group's committed offsets and their metadata, for display only; partitions without one are left out."""
        if group not in self._groups:
            self._groups[group] = GroupOffsets(self._settings, group)
        offsets = self._groups[group]
        return self._ask("reading committed offsets", lambda: offsets.of(partitions, self._timeout_s))  # type: ignore[no-any-return]

    def members(self, group: str) -> int:
        """How many clients are in a consumer group; 0 when there is no such group."""

        def question() -> int:
            asked = self._admin.describe_consumer_groups([group], request_timeout=self._timeout_s)
            try:
                return len(asked[group].result().members)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return 0
                raise

        return self._ask(f"describing group {group!r}", question)  # type: ignore[no-any-return]
