"""The inverted lists of a collection, in memory that their writer fills and any process searches where they lie.

Of each row that has a code: the code, in its list, and its row number, in no order; of an outlier only the number.
Each list has room to grow, of which a page is taken when it is written; codes lie as FAISS's fast scan reads them:
blocks of 32 rows, interleaved (`ivf.py`), list after list, and after all codes the row numbers.
Invariants: what was written never moves; codes and numbers come first, then the lists' sizes, then that of the
outliers, then `coded`; so who reads them in the other order finds all that `coded` counts. One writer, any readers,
also in other processes, without locks. Which rows are alive is told by the reader. Knows nothing of parts or ids.
Searched by `open_lists.py`.
"""

import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark.ann.ivf import BLOCK_ROWS, PLACE_IN_BLOCK
from tidemark.ann.parameters import SearchParameters
from tidemark.shared_memory import Region, fence, room

if TYPE_CHECKING:
    from tidemark.ann.quantizer import Quantizer

# The list of a row that is in none.
OUTLIER = np.uint32(0xFFFFFFFF)
# A list has room for so many times the rows that it, or a list on average, is expected to hold, and for so many.
GROWTH, ROOM_LEAST = 16, 65_536
# Address space, of which little is ever taken: a process has 2**47.
BYTES_MAX = 2**44
# Room for outliers: so many, twice those that are expected, and this share of the other rows.
OUTLIERS_LEAST, OUTLIERS_SHARE = 2**20, 1 / 8
# Codes of so many rows are rearranged at a time: they stay in the caches.
_BLOCK_CODES = 2_048
_PAGE = 4_096


class Place(msgspec.Struct, frozen=True):
    """Where lists lie, for other processes."""

    region: str | None
    lists: int
    code_bytes: int
    rooms: int
    outliers_room: int


class Memory:
    """The arrays of the lists in a region; `starts`: the first of each list's places for rows."""

    def __init__(self, region: Region, place: Place) -> None:
        self.region, self.place, lists = region, place, place.lists
        self.words: NDArray[np.int64] = region.take(
            np.int64, 8
        )  # coded, version of parameters, dead outliers, appends, deaths
        self.parameters: NDArray[np.float64] = region.take(np.float64, 2, 8)
        self.sizes: NDArray[np.int64] = region.take(np.int64, lists)
        self.dead: NDArray[np.int64] = region.take(np.int64, lists)
        self.starts: NDArray[np.int64] = region.take(np.int64, lists + 1)
        # How many outliers there are, then their row numbers.
        self.outliers: NDArray[np.int64] = region.take(np.int64, 1 + place.outliers_room)
        self.codes: NDArray[np.uint8] = region.take(np.uint8, place.rooms * place.code_bytes)
        self.numbers: NDArray[np.int64] = region.take(np.int64, place.rooms)
        self._known = 0, SearchParameters()

    @staticmethod
    def size(place: Place) -> int:
        """Bytes of the region."""
        words = room(np.int64, 8) + room(np.float64, 2, 8) + 2 * room(np.int64, place.lists)
        numbers = room(np.int64, place.lists + 1) + room(np.int64, 1 + place.outliers_room)
        return words + numbers + room(np.uint8, place.rooms * place.code_bytes) + room(np.int64, place.rooms)

    @property
    def changes(self) -> int:
        """Changes with the sizes and with the dead; read before them."""
        return int(self.words[3]) + int(self.words[4])

    def read_parameters(self) -> SearchParameters:
        version, found = self._known
        while version != int(self.words[1]):
            version = int(self.words[1])
            effort, k_factor, recall, reach, living = self.parameters[version % 2].tolist()[:5]
            found = SearchParameters(int(effort), int(k_factor), recall, reach, living)
            fence()
        self._known = version, found
        return found


class Lists:
    """The writer's side; one thread appends and sets, and one, perhaps another, notes what died."""

    def __init__(self, quantizer: "Quantizer", expected: NDArray[np.int64], shared: bool, outliers: int = 0) -> None:
        """`expected` (lists,): how many rows each list is to hold soon, beside so many `outliers`."""
        rooms = _rooms(expected, quantizer.code_bytes)
        outliers_room = OUTLIERS_LEAST + 2 * outliers + int(OUTLIERS_SHARE * expected.sum())
        place = Place(None, quantizer.lists, quantizer.code_bytes, int(rooms.sum()), outliers_room)
        region = Region(Memory.size(place), shared)
        region.take_small_pages()
        self.memory = Memory(region, msgspec.structs.replace(place, region=region.name))
        self._rooms = rooms
        self.memory.starts[1:] = np.cumsum(rooms)
        self.set_parameters(quantizer.parameters)

    @property
    def place(self) -> Place:
        return self.memory.place

    # -- write ---------------------------------------------------------------------------------------------

    def append(self, lists: NDArray[np.uint32], codes: NDArray[np.uint8], numbers: NDArray[np.int64]) -> bool:
        """Add rows: their lists (n,), codes (n, code bytes) and row numbers (n,).

        False, and nothing is added, where a list or the outliers have no room for them: the lists are to be made anew.
        """
        memory, outliers = self.memory, lists == OUTLIER
        known, count = int(memory.outliers[0]), int(np.count_nonzero(outliers))
        if count:
            outlying = numbers[outliers]
            lists, codes, numbers = lists[~outliers], codes[~outliers], numbers[~outliers]
        counts = np.bincount(lists, minlength=len(memory.sizes))
        if known + count >= len(memory.outliers) or (memory.sizes + counts > self._rooms).any():
            return False
        order = np.argsort(lists.astype(np.uint16 if len(counts) <= 2**16 else np.uint32), kind="stable")
        firsts = memory.starts[:-1] + memory.sizes - (np.cumsum(counts) - counts)
        places = np.arange(len(order)) + np.repeat(firsts, counts)
        for first in range(0, len(order), _BLOCK_CODES):
            self._write(codes[order[first : first + _BLOCK_CODES]], places[first : first + _BLOCK_CODES])
        memory.numbers[places] = numbers[order]
        if count:
            memory.outliers[1 + known : 1 + known + count] = outlying
        fence()
        memory.sizes += counts
        memory.outliers[0] = known + count
        fence()
        memory.words[3] += 1
        fence()
        return True

    def _write(self, codes: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        """Put codes (n, code bytes) at ascending places, in blocks where two rows share a byte."""
        block, row = np.divmod(places, BLOCK_ROWS)
        halves = np.stack([codes & 15, codes >> 4], axis=2)
        blocks = self.memory.codes.reshape(-1, codes.shape[1], 2, BLOCK_ROWS // 2)
        column, upper = PLACE_IN_BLOCK[row], row >= BLOCK_ROWS // 2
        lower = ~upper
        # Whoever shares the byte comes after.
        blocks[block[lower], :, :, column[lower]] = halves[lower]
        blocks[block[upper], :, :, column[upper]] |= halves[upper] << 4

    def set_coded(self, coded: int) -> None:
        """Say up to where rows are in the lists; the caller says what is counted."""
        self.memory.words[0] = coded
        fence()

    def set_parameters(self, parameters: SearchParameters) -> None:
        version = int(self.memory.words[1]) + 1
        found = astuple(parameters)
        self.memory.parameters[version % 2][: len(found)] = found
        fence()
        self.memory.words[1] = version

    def note_dead(self, lists: NDArray[np.uint32]) -> None:
        """Count the rows as dead that were appended with these lists (n,)."""
        memory, inside = self.memory, lists != OUTLIER
        memory.words[2] += len(lists) - int(np.count_nonzero(inside))
        memory.dead += np.bincount(lists[inside], minlength=len(memory.dead))
        fence()
        memory.words[4] += 1  # not that of `append`: it may be another thread's turn

    # -- count ---------------------------------------------------------------------------------------------

    @property
    def coded(self) -> int:
        return int(self.memory.words[0])

    @property
    def parameters(self) -> SearchParameters:
        return self.memory.read_parameters()

    @property
    def outliers(self) -> int:
        """How many rows every search ranks, dead or alive."""
        return int(self.memory.outliers[0])

    @property
    def entries(self) -> int:
        """How many rows were appended, outliers too."""
        return int(self.memory.sizes.sum()) + self.outliers

    @property
    def dead(self) -> int:
        """How many of them were noted as dead."""
        return int(self.memory.dead.sum() + self.memory.words[2])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the pages written, but for a page or two."""
        blocks = -(-self.memory.sizes // BLOCK_ROWS) * BLOCK_ROWS * self.place.code_bytes
        pages = -(-blocks // _PAGE) + -(-8 * self.memory.sizes // _PAGE)
        return int(pages.sum()) * _PAGE + 8 * (self.outliers + 3 * self.place.lists)


def _rooms(expected: NDArray[np.int64], code_bytes: int) -> NDArray[np.int64]:
    """Rows each list (lists,) has room for.

    Multiples of blocks, and such that the distance from a list's codes to its row numbers is one of the codes' size:
    FAISS looks for the numbers where a list's capacity of codes ends.
    """
    step = math.lcm(2 * BLOCK_ROWS, code_bytes // math.gcd(8, code_bytes))
    growth: float = GROWTH
    while True:
        least = max(growth * float(expected.mean()), ROOM_LEAST * growth / GROWTH)
        rooms: NDArray[Any] = np.ceil(np.maximum(growth * expected, least) / step).astype(np.int64) * step
        if int(rooms.sum()) * (code_bytes + 8) <= BYTES_MAX or growth < 2:
            return rooms
        growth /= 2
