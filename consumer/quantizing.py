"""What this process knows of the quantizer of each generation that it indexes, and when a look is due whether to train.

The newest version is found by a side thread, whoever has made it; the owning thread, which alone calls what is here,
never waits for it. Whether there is to be another one is looked at by the builder (`training.py`), for it takes the
manifests of all partitions: here is only when that may have changed. A collection of another kind than ivfpq has none.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from consumer.jobs import Place, Trained
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import StoreUnavailable
from tidemark.generation import Generation
from tidemark.manifest import CodesEntry, SegmentEntry
from tidemark.quantizers import Quantizers, Versioned

logger = logging.getLogger(__name__)

LOOK_FOR_NEW_S = 1.0
# A look whether to train reads a manifest per partition, in a fork: some milliseconds.
UNTRAINED_S, TRAINED_S = 1.0, 60.0
GROWTH_LOOKED_AT = 1.25
# Whether codes have drifted is asked of so large a share of the rows that were there at the training, and as many
# outliers among them are too many: of those rows there were at most half as many.
DRIFT_ROWS_SHARE, OUTLIERS_SHARE = 0.25, 0.04


class Known:
    """The quantizer of one generation, as far as it is known here."""

    def __init__(self, root: Path, collection: Collection, generation: str, index: IndexParameters) -> None:
        self.place, self.index = Place(str(root), collection, generation), index
        self.newest: Versioned | None = None
        self._quantizers = Quantizers(root, collection, generation)
        self._looking: Future[Versioned | None] | None = None
        self._look_at = 0.0
        self._problem: str | None = None
        self._asked_at, self._asked_rows = 0.0, -1
        self.expected = False  # one was made, and is not read yet
        self.drifted = 0
        self._forget_codes()

    @property
    def version(self) -> int:
        """The newest version known, 0 for none."""
        return self.newest.version if self.newest else 0

    @property
    def recall(self) -> float:
        """Recall@10 of searches by its codes, as measured on the rows that it was trained on."""
        return self.newest.quantizer.parameters.recall if self.newest else 1.0

    def has_coded(self, entry: SegmentEntry) -> bool:
        """Whether a segment has codes of the newest one known."""
        newest = self.newest
        return newest is not None and entry.is_coded_by(newest.version, newest.quantizer.identity)

    def turn(self, side: ThreadPoolExecutor) -> None:
        """Take a version that was found, and have the next one looked for when it is time."""
        now = time.monotonic()
        if self._looking is not None and self._looking.done():
            looked, self._looking = self._looking, None
            self._take(looked)
        if self._looking is None and now >= self._look_at:
            self._look_at = now + LOOK_FOR_NEW_S
            self._looking = side.submit(self._quantizers.newest, self.newest)

    def _take(self, looked: Future[Versioned | None]) -> None:
        try:
            found = looked.result()
            self._problem, self.expected = None, False
        except StoreUnavailable as error:
            if str(error) != self._problem:
                logger.warning("no newer quantizer is looked for: %s", error)
            self._problem = str(error)
            return
        if found is not None:
            self.newest, self.drifted = found, 0
            self._forget_codes()
            self._warn_of_recall(found)

    def _forget_codes(self) -> None:
        self._rows, self._outliers, self._error = 0, 0, 0.0

    def _warn_of_recall(self, found: Versioned) -> None:
        if self.recall < self.index.recall_target:
            logger.warning(
                "%s: quantizer %d has recall %.3f where index.recall_target asks for %.3f: codes cannot tell its rows "
                "apart; searches find more with `effort` or `exact`, or with kind hnsw",
                *(self.place.collection.name, found.version, self.recall, self.index.recall_target),
            )

    def look_again(self) -> None:
        """Find out anew whether there is one that can be used: what is known may be what a build failed of."""
        self.newest, self.expected, self._looking, self._look_at = None, True, None, 0.0
        self._asked_rows = -1

    def has_grown(self, own_rows: int) -> bool:
        """Whether the builder has not looked since it may have changed if another one is wanted.

        `own_rows` live in segments of this process.
        """
        if self.newest is None or self.drifted:
            return own_rows not in (0, self._asked_rows)
        return own_rows >= GROWTH_LOOKED_AT * max(1, self._asked_rows)

    def train_wanted(self, own_rows: int) -> bool:
        """Whether the builder is to look now."""
        since = time.monotonic() - self._asked_at
        if self.has_grown(own_rows):
            return since >= UNTRAINED_S
        return since >= TRAINED_S and own_rows != self._asked_rows  # others may have grown, too

    def trained(self, result: Trained, own_rows: int, drifted: int) -> None:
        """The builder has looked, and trained if it was time; `drifted` as it was told."""
        self._asked_at, self._asked_rows = time.monotonic(), own_rows if drifted == self.drifted else -1
        if result.version > self.version:
            self.expected, self._looking, self._look_at = True, None, 0.0

    def note(self, codes: CodesEntry, rows: int) -> None:
        """Codes were made of so many rows: find out when those of some time are much worse than at the training."""
        if self.newest is None:
            return
        quantizer = self.newest.quantizer
        if (codes.quantizer, codes.quantizer_id) != (self.newest.version, quantizer.identity):
            return
        self._rows += rows
        self._outliers += codes.outliers
        self._error += (rows - codes.outliers) * codes.error
        if self._rows < max(self.index.ann_rows_min, DRIFT_ROWS_SHARE * quantizer.row_count):
            return
        few = self._outliers <= OUTLIERS_SHARE * self._rows
        if not few or self._error > quantizer.error_max * (self._rows - self._outliers):
            self.drifted, self._asked_rows = self.newest.version, -1
        self._forget_codes()


class KnownQuantizers:
    """Of all generations that this process indexes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, str], Known] = {}
        self._side = ThreadPoolExecutor(1, thread_name_prefix="quantizers")

    def of(self, collection: Collection, made: Generation) -> Known | None:
        """What is known of a generation's; None when its kind has none."""
        if made.index.kind != "ivfpq":
            return None
        key = (collection.name, made.name)
        if key not in self._known:
            self._known[key] = Known(self._root, collection, made.name, made.index)
        return self._known[key]

    def turn(self, indexed: Sequence[Known]) -> None:
        """Look for newer versions of those that are indexed now; the others are forgotten."""
        self._known = {key: known for key, known in self._known.items() if known in indexed}
        for known in self._known.values():
            known.turn(self._side)

    def close(self) -> None:
        self._side.shutdown(wait=False, cancel_futures=True)
