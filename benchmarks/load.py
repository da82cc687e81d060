"""Load on a topic at a steady rate, as a process of its own: `python -m benchmarks.load ...`.

Sends raw SIFT rows in small bursts; half of them update ids that exist. Prints one JSON line when done: records,
seconds, and the latency of the produce() calls.
"""

import argparse
import json
import os
import time

import numpy as np
from confluent_kafka import Producer

from benchmarks import machine, sift
from tidemark.kafka_settings import producer_settings

BURST_S = 0.005
LINGER_MS = 5  # librdkafka's default; Tidemark's own producers use 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap_servers")
    parser.add_argument("topic")
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.nice(machine.NICE)
    rows = sift.load(arguments.rows).base
    random = np.random.default_rng(arguments.seed)
    settings: dict[str, str | int | float | bool] = {
        "bootstrap.servers": arguments.bootstrap_servers,
        "queue.buffering.max.messages": 1_000_000,
    }
    settings["linger.ms"] = LINGER_MS
    producer = Producer(producer_settings(settings))
    calls: list[int] = []
    started, sent = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < arguments.seconds:
        due = int(elapsed * arguments.rate) - sent
        for row in random.integers(0, len(rows), due).tolist():
            key = f"v{row}" if row % 2 else f"n{sent}"
            value = rows[row].tobytes()
            before = time.perf_counter_ns()
            producer.produce(arguments.topic, value, key)
            calls.append(time.perf_counter_ns() - before)
            sent += 1
        producer.poll(0)
        time.sleep(BURST_S)
    left = producer.flush(60)
    milliseconds = np.array(calls) / 1e6
    print(
        json.dumps(
            {
                "records": sent - left,
                "seconds": time.perf_counter() - started,
                "produce_p50_ms": float(np.percentile(milliseconds, 50)),
                "produce_p99_ms": float(np.percentile(milliseconds, 99)),
            }
        )
    )


if __name__ == "__main__":
    main()
