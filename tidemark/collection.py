"""What a collection is: one topic read as vectors of one dimension under one metric, and how it is indexed.

Values only, no input or output. The part of it that decides what the stored rows mean (`identity`) is
written into every manifest, and a checkpoint made under another identity is refused.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tidemark.errors import BadConfiguration
from tidemark.partitioner import Partitioner

Metric = Literal["cosine", "l2", "ip"]
RecordFormat = Literal["auto", "raw", "json"]
IdFormat = Literal["utf8", "int64", "bytes"]
IndexKind = Literal["ivfpq", "hnsw", "flat"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DIMENSION_MAX = 65_536


@dataclass(frozen=True, slots=True)
class IndexParameters:
    """How rows are indexed. Zero means: derived from the rows.

    Below `ann_rows_min` rows a collection gets no quantizer (ivfpq), a segment no graph (hnsw): an exact scan is as
    fast there (a 128-d scan takes 21 us per 1,000 rows), and there are too few rows to train on. Re-measured by
    benchmarks/main_job.py. `nlist` is of ivfpq, `m` and `ef_construction` are of hnsw.
    """

    kind: IndexKind = "ivfpq"
    recall_target: float = 0.97
    nlist: int = 0
    m: int = 16
    ef_construction: int = 64
    ann_rows_min: int = 8_192


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    topic: str
    dimension: int
    metric: Metric = "cosine"
    format: RecordFormat = "auto"
    id_format: IdFormat = "utf8"
    dead_letter_topic: str = ""
    partitioner: Partitioner = "murmur2"
    index: IndexParameters = field(default_factory=IndexParameters)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise BadConfiguration(f"collection name {self.name!r}: use {NAME.pattern}")
        if not 1 <= self.dimension <= DIMENSION_MAX:
            raise BadConfiguration(
                f"collections.{self.name}.dimension is {self.dimension}: must be 1 to {DIMENSION_MAX}"
            )
        if self.dead_letter_topic == self.topic:
            raise BadConfiguration(f"collections.{self.name}.dead_letter_topic is its own topic {self.topic!r}")

    @property
    def dead_letters(self) -> str:
        return self.dead_letter_topic or f"{self.topic}.dead-letters"

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector as little-endian float32."""
        return 4 * self.dimension

    def identity(self) -> dict[str, Any]:
        """What the stored rows mean; differs only when every row would have to be read again."""
        return {
            "topic": self.topic,
            "dimension": self.dimension,
            "metric": self.metric,
            "id_format": self.id_format,
        }
