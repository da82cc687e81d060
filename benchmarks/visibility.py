"""How long a record takes from just before produce() until searches find it, at a steady rate of records.

Who searches says which position its answers were of (`clients.py`): no answer covers an offset before the replica
has applied it, and nobody has to ask for the lag, which costs the replica as much as a search each time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from confluent_kafka import KafkaException, Producer
from numpy.typing import NDArray

BURST_S = 0.002
Sent = list[tuple[int, float]]  # offset, time before produce()


def send(producer: Producer, topic: str, base: NDArray[np.float32], rate: int, seconds: float) -> tuple[Sent, float]:
    """Rows of `base` under ids that exist, in turn, in small bursts; what was sent, and the seconds it took."""
    sent: Sent = []

    def reporting(before: float) -> Callable[[Any, Any], None]:
        def report(error: Any, message: Any) -> None:
            if error is not None:
                raise KafkaException(error)
            sent.append((message.offset(), before))

        return report

    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        while count < elapsed * rate:
            row = count % len(base)
            value = base[row].tobytes()
            producer.produce(topic, value, f"v{row}", on_delivery=reporting(time.perf_counter()))
            count += 1
        producer.poll(0)
        time.sleep(BURST_S)
    took_s = time.perf_counter() - started
    producer.flush()
    return sent, took_s


def waits_ms(sent: Sent, seen: Sequence[tuple[float, int]]) -> NDArray[np.float64]:
    """Of every record, the time until an answer came that covers its offset.

    `seen`: times and positions of answers, ascending. Raises ValueError when they end before the last record.
    """
    offsets, before = np.array(sent).T
    times, positions = np.array(seen).T
    first = np.searchsorted(positions, offsets, side="right")
    if (missing := int((first == len(positions)).sum())) > 0:
        raise ValueError(f"{missing} of {len(sent)} records were not visible when the searches ended")
    waits: NDArray[np.float64] = (times[first] - before) * 1e3
    return waits
