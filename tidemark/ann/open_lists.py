"""The lists of a collection as they are searched, by any thread of any process, while their writer adds rows.

FAISS searches them where they lie (`lists.py`): what it may answer is a bitmap over all row numbers, read as it goes.
What it finds are candidates by their codes; whoever asks ranks them by their vectors.
"""

import ctypes
import math
import threading
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann.centroids import AMID_DEAD_CANDIDATES, Occupancy, nearest, padded
from tidemark.ann.lists import Lists, Memory, Place
from tidemark.ann.parameters import CALIBRATION_K, SearchParameters
from tidemark.live_rows import LiveRows
from tidemark.shared_memory import Region

if TYPE_CHECKING:
    from tidemark.ann.quantizer import Quantizer

# Where too few of the rows in the lists probed may be answered, so many times as many are probed.
PROBED_AGAIN = 4
# A search among the n-th part of the rows probes n to the power of this times as many lists, and lists that hold so
# many times the rows that are ranked exactly (`make bench-filters`).
SPREAD_EXPONENT, MATCHING_WANTED = 0.1, 2
# Where codes do not tell the k nearest from the rest, so many rows of the nearest lists are ranked by their vectors.
UNTOLD_ROWS = 8_192


class _FaissLists(faiss.OnDiskInvertedLists):
    """FAISS's lists over memory that is not theirs to unmap."""

    def __del__(self) -> None:
        self.ptr = None


class Alive:
    """The rows a search may answer: bits of their numbers in a uint8 array, little-endian bit order.

    A bit cleared during a search may or may not count. Any thread may use it. `count`: how many bits are set, where
    that is known; then nobody looks for more. Rows whose bits the bitmap does not have may not be answered.
    """

    def __init__(self, bitmap: NDArray[np.uint8], count: int | None = None) -> None:
        self._rows, self.count = LiveRows(bitmap, 8 * len(bitmap)), count  # FAISS keeps only the bitmap's address
        self._selector = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg, arg-type]
        self._options: dict[int, Any] = {}

    def among(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the row numbers that may be answered."""
        numbers = numbers[numbers < self._rows.row_count]
        return numbers[self._rows.are_live(numbers)]

    def options(self, probed: int) -> Any:
        """FAISS's search parameters; made once, for it takes as long as a small search."""
        if probed not in self._options:
            self._options[probed] = faiss.SearchParametersIVF(nprobe=probed, sel=self._selector)  # type: ignore[call-arg]
        return self._options[probed]


class OpenLists:
    """The reader's side of `Lists`, of the same process or by their place; open it once per process."""

    def __init__(self, quantizer: "Quantizer", lists: Lists | Place) -> None:
        """Raises FileNotFoundError when the writer has let go of what is at the place."""
        if isinstance(lists, Lists):
            self._memory = lists.memory
        else:
            assert lists.region is not None
            self._memory = Memory(Region.open(lists.region), lists)
        self.quantizer, self._centroids = quantizer, quantizer.centroids
        self._refreshing = threading.Lock()
        self._index = quantizer.empty_index()
        self._open()
        self._seen, self._occupancy = -1, Occupancy(self._memory.sizes, self._memory.dead)

    def _open(self) -> None:
        place, starts, width = self._memory.place, self._memory.starts[:-1], self.quantizer.code_bytes
        lists: Any = _FaissLists()
        lists.nlist, lists.code_size, lists.prefetch_nthread = place.lists, width, 0
        codes = self._memory.codes
        lists.totsize, lists.ptr = codes.nbytes + self._memory.numbers.nbytes, faiss.swig_ptr(codes)
        lists.lists.resize(place.lists)
        address = int(lists.lists.data().this)  # of structs of size, capacity and offset
        words: Any = (ctypes.c_int64 * (3 * place.lists)).from_address(address)
        self._table: NDArray[np.int64] = np.frombuffer(words, np.int64).reshape(-1, 3)
        # FAISS looks for the row numbers where a list's capacity of codes ends.
        self._table[:, 1] = place.rooms + 8 * starts // width - starts
        self._table[:, 2] = starts * width
        self._index.replace_invlists(lists, False)
        self._faiss_lists = lists

    @property
    def coded(self) -> int:
        """As `Lists.set_coded` said; read before a search, all that it counts is found."""
        return int(self._memory.words[0])

    @property
    def parameters(self) -> SearchParameters:
        return self._memory.read_parameters()

    def candidates(
        self,
        queries: NDArray[np.float32],
        k: int,
        alive: Alive,
        effort: float = 1.0,
        parameters: SearchParameters | None = None,
    ) -> NDArray[np.int64]:
        """Row numbers (nq, width) of rows alive, among them the k nearest by codes of each query; padded with -1.

        All rows that were appended before are looked at. `effort` scales the calibrated `parameters`.
        """
        queries = np.ascontiguousarray(queries)
        found = parameters or self.parameters
        occupancy = self.refresh()
        lists, amid_dead = self._centroids.within(queries, found.for_neighbours(k, effort), occupancy)
        k_factor = math.ceil(found.k_factor * max(1.0, effort)) * (AMID_DEAD_CANDIDATES if amid_dead else 1)
        return self._found(queries, k, lists, min(max(k, CALIBRATION_K) * k_factor, occupancy.living_count), alive)

    def candidates_matching(
        self, queries: NDArray[np.float32], k: int, matching: Alive, effort: float, per_list: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """As `candidates`, of the rows that match a filter; `per_list` (lists,) says how many of them each list has.

        The fewer they are, the farther apart they lie: more lists are probed. Where they lie in other lists than those
        nearest to the query, the nearest lists are probed that hold some.
        """
        queries, parameters, occupancy = np.ascontiguousarray(queries), self.parameters, self.refresh()
        count = int(per_list.sum())
        wanted = min(max(k, CALIBRATION_K) * math.ceil(parameters.k_factor * max(1.0, effort)), count)
        spread = (max(1, occupancy.living_count) / max(1, count)) ** SPREAD_EXPONENT
        scaled = parameters.for_neighbours(k, effort * max(1.0, spread))
        lists = self._centroids.with_matching(queries, scaled, occupancy, per_list, MATCHING_WANTED * wanted)
        return self._found(queries, k, lists, wanted, matching)

    def per_list(self, rows: Alive) -> NDArray[np.int64]:
        """How many of the rows are in each list, (lists,): 15 ms for a million entries."""
        self.refresh()
        starts, sizes, numbers = self._memory.starts[:-1].tolist(), self._table[:, 0].tolist(), self._memory.numbers
        counts = (len(rows.among(numbers[at : at + size])) for at, size in zip(starts, sizes, strict=True))
        return np.fromiter(counts, np.int64, len(starts))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many entries each list has, (lists,), as of the last search or count."""
        return self._table[:, 0].copy()

    def _found(
        self, queries: NDArray[np.float32], k: int, lists: NDArray[np.int64], wanted: int, alive: Alive
    ) -> NDArray[np.int64]:
        """The `wanted` nearest by codes in the lists (nq, width), of more lists when those have not enough."""
        outliers = self._memory.outliers[1 : 1 + int(self._memory.outliers[0])]
        distances, labels = self._probe(queries, lists, wanted, alive)
        enough = wanted if alive.count is None else min(wanted, alive.count)
        if enough and labels[:, enough - 1].min() < 0:
            self._probe_more(queries, (lists >= 0).sum(axis=1), distances, labels, enough, alive)
        if wanted > k:
            labels = self._told_apart(queries, distances, labels, k, alive)
        if len(outliers):
            beside = alive.among(outliers)
            labels = np.concatenate([labels, np.broadcast_to(beside, (len(queries), len(beside)))], axis=1)
        return labels

    def refresh(self) -> Occupancy:
        """Have FAISS see all rows appended by now."""
        changes = self._memory.changes
        if changes == self._seen:
            return self._occupancy
        with self._refreshing:  # or an older number of rows may be stored after a newer one
            changes = self._memory.changes
            dead = self._memory.dead.copy()  # first: no more than died of those that are counted next
            sizes = self._memory.sizes.copy()
            self._table[:, 0] = sizes
            self._occupancy, self._seen = Occupancy(sizes, dead), changes
            return self._occupancy

    def _probe(
        self, queries: NDArray[np.float32], lists: NDArray[np.int64], count: int, alive: Alive
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The `count` rows nearest by codes (nq, count) in the lists (nq, width): distances, numbers; else -1."""
        distances, labels = np.empty((len(queries), count), np.float32), np.full((len(queries), count), -1, np.int64)
        if count:
            # Codes are of the rows, not of what is left of them after the centroid: its distance is not used.
            unused = np.zeros(lists.shape, np.float32)
            pointers = [faiss.swig_ptr(each) for each in (lists, unused, distances, labels)]
            options = alive.options(lists.shape[1])
            self._index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), count, *pointers, False, options)
        return distances, labels

    def _probe_more(
        self,
        queries: NDArray[np.float32],
        probed: NDArray[np.int64],
        distances: NDArray[np.float32],
        labels: NDArray[np.int64],
        enough: int,
        alive: Alive,
    ) -> None:
        """Probe more and more lists for the queries that found fewer than enough, at last all."""
        left = np.flatnonzero(labels[:, enough - 1] < 0)
        squares, count = self._centroids.squares(queries[left]), max(1, int(probed[left].min()))
        while len(left) and count < self.quantizer.lists:
            count = min(self.quantizer.lists, PROBED_AGAIN * count)
            lists = padded([nearest(line, count) for line in squares])
            distances[left], labels[left] = self._probe(queries[left], lists, labels.shape[1], alive)
            short = labels[left, enough - 1] < 0
            left, squares = left[short], squares[short]

    def _told_apart(
        self,
        queries: NDArray[np.float32],
        distances: NDArray[np.float32],
        labels: NDArray[np.int64],
        k: int,
        alive: Alive,
    ) -> NDArray[np.int64]:
        """The candidates, with some thousand more for a query whose k-th is no nearer than the last one by codes.

        Of rows that are all equally near FAISS answers any, or none.
        """
        untold = distances[:, k - 1] == distances[:, -1]
        if not untold.any():
            return labels
        untold &= (labels[:, k - 1] >= 0) | (labels[:, 0] < 0)
        if not untold.any():
            return labels
        lines = np.flatnonzero(untold)
        added = [self._nearby(line, alive) for line in self._centroids.squares(queries[lines])]
        wide = np.full((len(labels), labels.shape[1] + max(map(len, added))), -1, np.int64)
        wide[:, : labels.shape[1]] = labels
        for line, numbers in zip(lines.tolist(), added, strict=True):
            wide[line] = -1
            wide[line, : len(numbers)] = numbers
        return wide

    def _nearby(self, squares: NDArray[np.float32], alive: Alive) -> NDArray[np.int64]:
        """Rows of the nearest lists that are alive, `UNTOLD_ROWS` or the last list's more."""
        found, count = [], 0
        for number in np.argsort(squares, kind="stable").tolist():
            start = int(self._memory.starts[number])
            found.append(alive.among(self._memory.numbers[start : start + int(self._table[number, 0])]))
            count += len(found[-1])
            if count >= UNTOLD_ROWS:
                break
        return np.concatenate(found)
