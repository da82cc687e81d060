"""4-bit product codes of a tail's rows, in inverted lists that FAISS searches where their writer puts them.

Each list has room for all rows (a page of memory is taken when it is written), laid out as FAISS's fast scan reads
it (`ivf.packed`): blocks of codes, then the row numbers, ascending. Rows far beyond the others (`outliers.py`) get no
codes: their numbers stand beside the lists, and every search ranks them exactly.
Invariants: what was written never moves; codes and numbers come first, then the lists' sizes and that of the outliers,
then the number of coded rows, so who reads them in the other order finds every row counted. One writer, any readers,
also in other processes, without locks. Knows nothing of ids or of dead rows. Used by `tail.py`.
"""

import ctypes
import math
from dataclasses import dataclass
from struct import Struct
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import index
from tidemark.ann.index import CODES_LISTS, Index, SearchParameters
from tidemark.ann.ivf import BLOCK_ROWS, packed
from tidemark.shared_memory import Region, fence, room

# Before the trained index: its length, then effort, k_factor and reach of its searches.
_HEAD = Struct("<qqqd")
# Times the error of the codes of the rows that they were trained on: beyond it rows are too different from those.
ERROR_MAX = 1.5
# Of so many rows the error of one is measured.
MEASURED_EVERY = 4
# With a larger share of outliers rows are rather unlike those trained on: of rows that get codes at a time, and of all.
OUTLIERS_SHARE_MAX = 0.05


class _Lists(faiss.OnDiskInvertedLists):
    """FAISS's lists over memory that is not theirs to unmap."""

    def __del__(self) -> None:
        self.ptr = None


@dataclass(frozen=True, slots=True)
class Coded:
    """The codes as they are searched: `index` answers numbers of rows."""

    index: Index
    parameters: SearchParameters
    _lists: _Lists
    _table: NDArray[np.int64]
    _sizes: NDArray[np.int64]
    _starts: NDArray[np.int64]
    _outliers: NDArray[np.int64]

    def refresh(self) -> None:
        """See all rows coded by now; threads that do this at a time all store sizes of now."""
        np.subtract(self._sizes, self._starts, out=self._table[:, 0])
        self.index.outliers = self._outliers[1 : 1 + int(self._outliers[0])]


class Codes:
    """Codes of the first `rows` rows of a tail, once `start` has given them an index to be made with.

    `ended`: no more rows get codes; `checked`: with how many it was last seen that searches find enough.
    """

    def __init__(self, region: Region, dimension: int, capacity: int) -> None:
        self._code_bytes, self._room = _code_bytes(dimension), _whole_blocks(capacity)
        self._words: NDArray[np.int64] = region.take(np.int64, 1)  # rows
        self._sizes: NDArray[np.int64] = region.take(np.int64, CODES_LISTS)
        # How many outliers there are, then their row numbers, ascending.
        self._outliers: NDArray[np.int64] = region.take(np.int64, 1 + _outliers_max(capacity))
        self._model: NDArray[np.uint8] = region.take(np.uint8, _model_bytes(dimension))
        self._memory: NDArray[np.uint8] = region.take(np.uint8, CODES_LISTS, self._room * (self._code_bytes + 8))
        self._encoder: Index | None = None
        self._error_max = math.inf
        self.ended = False
        self.checked = 0

    @staticmethod
    def size(dimension: int, capacity: int) -> int:
        """Bytes they take of a region; few of them are ever written."""
        lists = room(np.uint8, CODES_LISTS, _whole_blocks(capacity) * (_code_bytes(dimension) + 8))
        numbers = room(np.int64, 1) + room(np.int64, CODES_LISTS) + room(np.int64, 1 + _outliers_max(capacity))
        return numbers + room(np.uint8, _model_bytes(dimension)) + lists

    @property
    def rows(self) -> int:
        return int(self._words[0])

    # -- write ---------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        return self._encoder is not None

    def start(self, trained: Index, found: SearchParameters) -> None:
        """Make codes with this index (`index.build_codes`) from now on; the rows it holds do not matter."""
        written = index.to_bytes(index.emptied(trained))
        head = _HEAD.pack(len(written), found.effort, found.k_factor, found.reach)
        self._model[: len(head) + len(written)] = np.frombuffer(head + written, np.uint8)
        self._encoder = trained

    def append(self, vectors: NDArray[np.float32]) -> bool:
        """Code the next rows (n, dimension); False when they are unlike those that the index was trained on."""
        assert self._encoder is not None and self._encoder.bulk is not None
        first, outliers = self.rows, self._encoder.bulk.outliers(vectors)
        known = int(self._outliers[0])
        count = known + len(outliers)
        if len(outliers) > OUTLIERS_SHARE_MAX * len(vectors) or count >= len(self._outliers):
            return False
        numbers = first + np.arange(len(vectors))
        if len(outliers):
            self._outliers[1 + known : 1 + count] = numbers[outliers]
            vectors, numbers = np.delete(vectors, outliers, axis=0), np.delete(numbers, outliers)
        codes, lists = self._encoder.encoded(vectors)
        error = self._encoder.error(vectors[::MEASURED_EVERY], codes[::MEASURED_EVERY])
        self._write(codes, lists, numbers)
        self._outliers[0] = count
        fence()
        self._words[0] = first + len(numbers) + len(outliers)
        if math.isinf(self._error_max):
            self._error_max = ERROR_MAX * error
        return error <= self._error_max

    def _write(self, codes: NDArray[np.uint8], lists: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Add codes to their lists: the last block of each is written again, with what it had, and those after it."""
        width, boundary = self._code_bytes, self._room * self._code_bytes
        order = np.argsort(lists, kind="stable")
        counts = np.bincount(lists, minlength=CODES_LISTS)
        sizes = self._sizes.copy()
        begun = np.where(counts, sizes % BLOCK_ROWS, 0)
        blocks = -(-(begun + counts) // BLOCK_ROWS)
        ends, first_blocks = np.cumsum(counts), np.cumsum(blocks) - blocks
        # One after the other all blocks of all lists; in them, each row's place.
        places = np.arange(len(codes)) + np.repeat(first_blocks * BLOCK_ROWS + begun - (ends - counts), counts)
        padded = np.zeros((int(blocks.sum()) * BLOCK_ROWS, width), np.uint8)
        padded[places] = codes[order]
        written = packed(padded)
        for number in np.flatnonzero(counts).tolist():
            size, count, block = int(sizes[number]), int(counts[number]), int(first_blocks[number])
            memory = self._memory[number]
            memory[boundary:].view(np.int64)[size : size + count] = numbers[order[ends[number] - count : ends[number]]]
            added = written[block : block + int(blocks[number])].reshape(-1)
            place = memory[(size - int(begun[number])) * width :][: added.size]
            place[: BLOCK_ROWS * width] |= added[: BLOCK_ROWS * width]
            place[BLOCK_ROWS * width :] = added[BLOCK_ROWS * width :]
        fence()
        self._sizes[:] = sizes + counts
        fence()

    # -- read ----------------------------------------------------------------------------------------------

    def opened(self, first: int) -> Coded:
        """The codes of the rows from `first` on, and of some before; only after `start`. It takes 0.3 ms."""
        length, effort, k_factor, reach = _HEAD.unpack(self._model[: _HEAD.size].tobytes())
        found = index.from_bytes(self._model[_HEAD.size : _HEAD.size + length].tobytes())
        sizes = self._sizes[: found.lists]
        lists: Any = _Lists()
        lists.nlist, lists.code_size = found.lists, self._code_bytes
        lists.totsize, lists.ptr = self._memory.nbytes, faiss.swig_ptr(self._memory)
        lists.prefetch_nthread = 0
        lists.lists.resize(found.lists)
        address = int(lists.lists.data().this)  # of structs of size, capacity and offset
        words: Any = (ctypes.c_int64 * (3 * found.lists)).from_address(address)
        table: NDArray[np.int64] = np.frombuffer(words, np.int64).reshape(-1, 3)
        starts = np.array([self._start_of(number, first) for number in range(found.lists)])
        # FAISS looks for the row numbers where a list's capacity of codes ends.
        table[:, 1] = self._room - starts + 8 * starts // self._code_bytes
        table[:, 2] = np.arange(found.lists) * self._memory.shape[1] + starts * self._code_bytes
        found.faiss.replace_invlists(lists, False)
        found.faiss.ntotal = self._room
        parameters = SearchParameters(effort, k_factor, reach=reach)
        return Coded(found, parameters, lists, table, sizes, starts, self._outliers)

    def _start_of(self, number: int, first: int) -> int:
        """How many rows of a list to leave out: whole blocks of rows before `first`, as the capacity's sum allows."""
        boundary = self._room * self._code_bytes
        rows = self._memory[number, boundary:].view(np.int64)[: self._sizes[number]]
        step = math.lcm(BLOCK_ROWS, self._code_bytes // math.gcd(8, self._code_bytes))
        return int(np.searchsorted(rows, first)) // step * step


def _code_bytes(dimension: int) -> int:
    return -(-index.codes_of(dimension) // 2)


def _outliers_max(capacity: int) -> int:
    return math.ceil(OUTLIERS_SHARE_MAX * capacity)


def _whole_blocks(rows: int) -> int:
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def _model_bytes(dimension: int) -> int:
    """Room for centroids, codebooks and what FAISS writes around them."""
    return _HEAD.size + 4 * dimension * (CODES_LISTS + 16) + 65_536
