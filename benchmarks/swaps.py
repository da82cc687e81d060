"""Updates at a steady rate, as a process of its own: `python -m benchmarks.swaps SERVERS TOPIC FILE ...`.

FILE holds the vectors (.npy) of the ids `v<row>`. An update gives an id another vector that is there: pairs of ids,
in a seeded order, swap theirs. So the vectors of the whole collection stay what they were, only who has them changes,
and searches before and after are of the same difficulty. Prints how many updates were acknowledged, in how many
seconds; `vectors_after` says which vectors that left.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks import machine
from tidemark.kafka_settings import producer_settings

BURST_S = 0.005
LINGER_MS = 5  # librdkafka's default; Tidemark's own producers use 1
_DRAWN = 4_096  # pairs drawn at a time


def updates(owners: NDArray[np.int64], seed: int) -> Iterator[tuple[int, int]]:
    """Without end: an id, and the row of the file that it gets; `owners`, the row each id has, is kept up to date."""
    random = np.random.default_rng(seed)
    while True:
        for one, other in random.integers(0, len(owners), (_DRAWN, 2)).tolist():
            for id_, row in ((one, int(owners[other])), (other, int(owners[one]))):
                owners[id_] = row
                yield id_, row


def owners_after(owners: NDArray[np.int64], seed: int, count: int) -> NDArray[np.int64]:
    """The row each id has after the first `count` updates; a copy."""
    owners = owners.copy()
    for _ in islice(updates(owners, seed), count):
        pass
    return owners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bootstrap_servers")
    parser.add_argument("topic")
    parser.add_argument("vectors", type=Path)
    parser.add_argument("owners", type=Path, help="the row each id has when it begins (.npy)")
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.nice(machine.NICE)
    vectors = np.load(options.vectors, mmap_mode="r")
    due = updates(np.load(options.owners), options.seed)
    producer = Producer(producer_settings({"bootstrap.servers": options.bootstrap_servers, "linger.ms": LINGER_MS}))
    started, sent = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < options.seconds:
        for id_, row in islice(due, (int(elapsed * options.rate) - sent) // 2 * 2):  # whole pairs
            producer.produce(options.topic, vectors[row].tobytes(), f"v{id_}")
            sent += 1
        producer.poll(0)
        time.sleep(BURST_S)
    seconds = time.perf_counter() - started
    if left := producer.flush(60):
        raise SystemExit(f"{left} updates were not acknowledged")
    print(json.dumps({"updates": sent, "seconds": seconds}))


if __name__ == "__main__":
    main()
