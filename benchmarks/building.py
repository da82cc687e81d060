"""What an index of a collection costs to make, over FAISS alone; part of `make bench` and `make bench-growth`.

Ours, `build_s`: a quantizer trained and calibrated on a sample, the codes of all rows, and all of them in the lists.
FAISS's, `faiss_build_s`: `plain_faiss.py` trained and filled, with as many lists and codes, on the same cores; it
has no calibration. Rows are in memory. Each is the least of ROUNDS, in a child process whose FAISS threads wait asleep,
as the consumer's builder is started: `python -m benchmarks.building ROWS` prints one JSON line.
"""

import json
import os
import subprocess
import sys
import time

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import fresh, sift
from benchmarks.plain_faiss import PlainFaiss

ROUNDS, SEED = 2, 1


def over_faiss(rows: int) -> dict[str, float]:
    """The figures of an index of so many SIFT rows."""
    command = [sys.executable, "-m", "benchmarks.building", str(rows)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _here(rows: int) -> dict[str, float]:
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    base = np.ascontiguousarray(sift.load(rows).base)
    rounds = [_ours(base) for _ in range(ROUNDS)]
    least = {name: min(each[name] for each in rounds) for name in rounds[0]}
    faiss_s = min(PlainFaiss(base, SEED).built_s for _ in range(ROUNDS))
    build_s = sum(least.values())
    return {
        **least,
        "build_s": build_s,
        "faiss_build_s": faiss_s,
        "build_rows_per_s": rows / build_s,
        "build_over_faiss": faiss_s / build_s,
        "code_us_a_row": (least["code_s"] + least["append_s"]) / rows * 1e6,
    }


def _ours(base: NDArray[np.float32]) -> dict[str, float]:
    started = time.perf_counter()
    quantizer = fresh.trained(base, "l2", SEED)
    trained = time.perf_counter()
    encoded = quantizer.encode(base)
    coded = time.perf_counter()
    fresh.filled(quantizer, encoded)
    return {"train_s": trained - started, "code_s": coded - trained, "append_s": time.perf_counter() - coded}


if __name__ == "__main__":
    print(json.dumps(_here(int(sys.argv[1]))))
