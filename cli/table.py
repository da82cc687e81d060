"""Tables on stdout: fitted to a terminal, and without any cut when the output goes elsewhere.

Cells hold what `printable` leaves of them, and no markup is read from ids or metadata: data never controls the
terminal. NO_COLOR is respected by rich.
"""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tidemark.printable import printable

# Wider than any row: rich would otherwise cut at 80 columns where there is no terminal.
_PIPE_WIDTH = 100_000


def console() -> Console:
    """A console on stdout that prints text as it is."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """Rows under headings; the columns named in `right` are aligned to the right and never cut."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", no_wrap=True, overflow="ellipsis")
    for name, column in zip(columns, made.columns, strict=True):
        if name in right:
            column.min_width = len(name)
    for row in rows:
        made.add_row(*map(printable, row))
    return made
