"""Times in RFC 3339, as microseconds since 1970 in UTC: one by one, and a column of strings at once.

Also read, as Qdrant does: a space for the T, no seconds, no offset (it is UTC then), an offset of hours alone, and
a date alone. Digits of a second beyond microseconds are cut off.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_TIME = (
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?)?"
)
_match = re.compile(_TIME, re.ASCII).fullmatch
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
NO_TIME = np.iinfo(np.int64).min

# What Arrow reads at once: every such text is a time, since one that is not would make it refuse all of them.
_DAY = r"((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_USUAL = rf"\A\d{{4}}-{_DAY}T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{{1,6}})?Z\z"


def parse_time(text: str) -> int | None:
    """Microseconds since 1970, UTC; None when the text is no time."""
    found = _match(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, hours, minutes = found.groups()
    if int(hours or 0) > 23 or int(minutes or 0) > 59:
        return None
    try:
        local = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        return None
    micros = (local - _EPOCH) // _MICROSECOND + int((fraction or "").ljust(6, "0")[:6])
    ahead = (60 * int(hours or 0) + int(minutes or 0)) * 60_000_000
    return micros + ahead if sign == "-" else micros - ahead


def parse_times(strings: Any) -> NDArray[np.int64]:
    """The same for an Arrow array of strings, int64 (n,); NO_TIME where a string is no time."""
    times = np.full(len(strings), NO_TIME, np.int64)
    usual = _matching(strings, _USUAL)
    rows = np.flatnonzero(usual)
    found = strings.take(pa.array(rows)).cast(pa.timestamp("us", "UTC"))
    times[rows] = found.cast(pa.int64()).to_numpy()
    times[times < _FIRST] = NO_TIME
    for row in np.flatnonzero(_matching(strings, r"\A\d{4}-\d\d-\d\d") & ~usual).tolist():
        time = parse_time(strings[row].as_py())
        times[row] = NO_TIME if time is None else time
    return times


def _matching(strings: Any, pattern: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.match_substring_regex(strings, pattern).to_numpy(zero_copy_only=False)
    return found
