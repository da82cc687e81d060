"""The main job's table: the unit of each figure, what it must reach here, and whether it does.

Printed as the README shows it, and written to benchmarks/results/latest.json.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import machine, sift

RESULTS = Path(__file__).parent / "results" / "latest.json"
# name: (unit, what must be reached here)
REACH: dict[str, tuple[str, str]] = {
    "produce_p50_ms": ("ms", ""),
    "produce_p99_ms": ("ms", "< 1"),
    "bare_consume_per_s": ("/s", ""),
    "searchable_per_s": ("/s", ""),
    "searchable_over_consume": ("ratio", ">= 0.5"),
    "built_per_s": ("/s", ">= 100,000"),
    "backlog_ivfpq_built_per_s": ("/s, 3 x a small cap", ""),
    "backlog_hnsw_built_per_s": ("/s, 3 x a small cap", ""),
    "backlog_flat_built_per_s": ("/s, 3 x a small cap", ""),
    "backlog_3m_searchable_per_s": ("/s, 2.5M distinct rows and 0.5M again", ""),
    "backlog_3m_built_per_s": ("/s, 2.5M distinct rows and 0.5M again", ""),
    "recall_sift": ("recall@10", ">= 0.95"),
    "recall_text": ("recall@10", ">= 0.95"),
    "recall_churn_min": ("recall@10", ">= 0.95"),
    "build_over_faiss": ("ratio", ">= 0.95"),
    "faiss_p50_ms": ("ms, FAISS alone", ""),
    "faiss_qps": ("/s, FAISS alone", ""),
    "faiss_recall": ("recall@10", ""),
    "p50_1_ms": ("ms, in process, 1 partition", ""),
    "p50_12_ms": ("ms, 12 partitions", ""),
    "p50_48_ms": ("ms, 48 partitions", ""),
    "p50_1_over_faiss": ("ratio", ""),
    "p50_12_over_1": ("ratio", "<= 1.3"),
    "p50_48_over_1": ("ratio", "<= 1.6"),
    "recall_1": ("recall@10, in process", ">= 0.965"),
    "recall_12": ("recall@10, in process", ">= 0.95"),
    "recall_48": ("recall@10, in process", ">= 0.95"),
    "http_p50_ms": ("ms", ""),
    "http_p99_ms": ("ms", ""),
    "http_qps": ("/s", ""),
    "http_over_faiss": ("ratio", ">= 0.4"),
    "http_qps_8_clients": ("/s", ""),
    "http_8_over_cores": ("ratio", ">= 0.7"),
    "clients_cpu_share": ("of all cores", ""),
    "http_ingest_p50_ms": ("ms", ""),
    "http_ingest_p99_ms": ("ms", ""),
    "search_p99_ingest_over_idle": ("ratio", "<= 2"),
    "http_ingest_5000_p50_ms": ("ms", ""),
    "http_ingest_5000_p99_ms": ("ms", ""),
    "search_p99_ingest_5000_over_idle": ("ratio", "<= 1.4"),
    "apart_idle_p50_ms": ("ms", ""),
    "apart_idle_p99_ms": ("ms", ""),
    "apart_ingest_p50_ms": ("ms", ""),
    "apart_ingest_p99_ms": ("ms", ""),
    "apart_p99_ingest_over_idle": ("ratio", "<= 1.2"),
    "ingested_per_s": ("/s", "20,000 asked"),
    "long_ingest_first_p50_ms": ("ms, of the first minute at 20,000/s", ""),
    "long_ingest_last_p50_ms": ("ms, of the fifth minute", ""),
    "long_ingest_last_over_first": ("ratio", "<= 1.2"),
    "visible_p50_ms": ("ms", ""),
    "visible_p99_ms": ("ms", "<= 50"),
    "visible_at_per_s": ("/s", "5,000 asked"),
    "ready_after_ingest_s": ("s", ""),
    "ready_s": ("s", "<= 1.5"),
    "empty_private_rss_mb": ("MB", ""),
    "private_rss_mb": ("MB", "<= 150 beyond an empty replica"),
    "rss_mb": ("MB", ""),
    "partitioned_p50_ms": ("ms, 12 partitions", ""),
    "partitioned_p99_ms": ("ms, 12 partitions", ""),
    "partitioned_recall": ("recall@10, 12 partitions, trained again", ">= 0.95"),
    "partitioned_ready_s": ("s, 12 partitions", "<= 1.5"),
    "index_cpu_us_a_row": ("µs of CPU a row, all processes", "<= 5"),
    "index_bytes_a_row": ("bytes a row beyond an empty replica", "<= 100"),
    "backlog_mb_384d_over_128d": ("ratio, MB/s", ""),
    "backlog_mb_768d_over_128d": ("ratio, MB/s, rotated", ">= 0.8"),
    "backlog_mb_1536d_over_128d": ("ratio, MB/s, rotated", ">= 0.8"),
    "search_384d_over_128d": ("ratio of p50, equal rows", ""),
    "search_768d_over_128d": ("ratio of p50, equal rows, rotated", "<= 2.5"),
    "search_1536d_over_128d": ("ratio of p50, equal rows, rotated", "<= 2.5"),
    "recall_384d": ("recall@10", ">= 0.95"),
    "recall_768d": ("recall@10, rotated", ">= 0.95"),
    "recall_1536d": ("recall@10, rotated", ">= 0.95"),
}
_LIMIT = re.compile(r"(<=|>=|<) ([\d.,]+)")


def report(figures: Mapping[str, float], rows: int) -> None:
    about = machine.describe(seed=0)
    print(
        f"\n{machine.heading(about)}; seed 0; SIFT {rows:,} x {sift.DIMENSION}, one partition if nothing else is said\n"
    )
    print("| figure | value | reach | reached |\n|---|---|---|---|")
    for name, (unit, reach) in REACH.items():
        if name in figures:
            print(f"| {name} | {shown(figures[name])} {unit} | {reach} | {reached(figures[name], reach)} |")
    kept = {name: {"value": v, "unit": REACH[name][0], "reach": REACH[name][1]} for name, v in figures.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": about, "rows": rows, "figures": kept}, indent=1) + "\n")


def reached(value: float, reach: str) -> str:
    """`yes`, or by how much of the limit it is missed; empty where the reach names no limit."""
    found = _LIMIT.match(reach)
    if found is None:
        return ""
    limit = float(found[2].replace(",", ""))
    missing = limit - value if found[1] == ">=" else value - limit
    if missing < 0 or (missing == 0 and found[1] != "<"):
        return "yes"
    share = 100 * missing / limit
    return f"no, misses by {share:.0f} %" if share >= 1 else f"no, misses by {share:.1f} %"


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
