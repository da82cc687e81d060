"""A producer of transactions for tests."""

import secrets
from collections.abc import Iterable

from confluent_kafka import Producer

from tests.services import Deployment
from tidemark.kafka_settings import producer_settings

Records = Iterable[tuple[bytes, bytes | None]]


class Transactions:
    """A transactional producer; each method ends with everything it has sent acknowledged."""

    def __init__(self, deployed: Deployment) -> None:
        name = {"transactional.id": f"{deployed.topic}-{secrets.token_hex(3)}"}
        self._producer = Producer({**producer_settings(deployed.settings.kafka), **name})
        self._topic = deployed.topic
        self._producer.init_transactions(20)

    def begin(self, records: Records, partition: int = 0) -> None:
        self._producer.begin_transaction()
        for key, value in records:
            self._producer.produce(self._topic, value, key, partition)
            self._producer.poll(0)
        assert self._producer.flush(20) == 0

    def commit(self) -> None:
        self._producer.commit_transaction(20)

    def abort(self) -> None:
        self._producer.abort_transaction(20)

    def committed(self, records: Records, partition: int = 0) -> None:
        self.begin(records, partition)
        self.commit()

    def aborted(self, records: Records, partition: int = 0) -> None:
        self.begin(records, partition)
        self.abort()
