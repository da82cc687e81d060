"""Dead letters: bad records, kept with their coordinates and reason in a topic of their own.

Invariant: a checkpoint passes a bad record only after its dead letter was acknowledged; `flush` raises
otherwise, the checkpoint is not made, and the records come again after a restart. Header names follow Kafka
Connect's, so existing tools show them. Knows nothing of views.
"""

from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from tidemark.errors import StoreUnavailable
from tidemark.kafka_settings import Settings, producer_settings
from tidemark.record import BadRecord

DETAIL_BYTES_MAX = 1024


class DeadLetters:
    """Produces dead letters; one per process, used by the owning thread only."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._producer = Producer(producer_settings(settings))
        self._group = group
        self._failed: list[str] = []

    def send(self, bad: BadRecord, source: tuple[str, int], topic: str) -> None:
        """Queue a bad record for its dead-letter topic."""
        message = bad.message
        headers = [*(message.headers() or []), *self._coordinates(bad, source)]
        self._produce(topic, message.key(), message.value(), headers)

    def _coordinates(self, bad: BadRecord, source: tuple[str, int]) -> list[tuple[str, bytes]]:
        detail = bad.detail.encode()[:DETAIL_BYTES_MAX]
        return [
            ("__connect.errors.topic", source[0].encode()),
            ("__connect.errors.partition", str(source[1]).encode()),
            ("__connect.errors.offset", str(bad.message.offset()).encode()),
            ("__connect.errors.exception.message", detail),
            ("tidemark.reason", bad.reason.encode()),
            ("tidemark.group", self._group.encode()),
        ]

    def _produce(self, topic: str, key: bytes | None, value: bytes | None, headers: list[Any]) -> None:
        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._failed.append(f"{topic}: {error.str()}")

        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
        except BufferError:
            self._producer.poll(1.0)
            self._producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
        except Exception as error:
            if not _too_large(error):
                raise
            # With the headers it no longer fits: the coordinates are what matters. No null value, it would
            # be a tombstone.
            headers = [*headers[-6:], ("tidemark.truncated", b"true")]
            self._producer.produce(topic, b"", (key or b"")[:256], headers=headers, on_delivery=delivered)
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        """Wait until every dead letter is acknowledged; raises StoreUnavailable when one is not."""
        left = self._producer.flush(timeout_s)
        if left or self._failed:
            why = self._failed[0] if self._failed else f"{left} not acknowledged within {timeout_s:g} s"
            raise StoreUnavailable(
                f"dead letters could not be written ({why}): create the dead-letter topic or mend its "
                "permissions; no checkpoint passes these records until then"
            )


def _too_large(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, KafkaError) and cause.code() == KafkaError.MSG_SIZE_TOO_LARGE
