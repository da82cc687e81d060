"""A part of a view: rows on disk or in memory, with numbers from `base` to `base + capacity`.

Both answer by row (`id_of`, `partitions_of`, ...); a segment is full from the start, a tail fills up.
"""

from tidemark.segment import Segment
from tidemark.tail import Tail

Part = Segment | Tail
