"""Named steps at which a test can have the process killed, as by `kill -9`.

`TIDEMARK_CRASH_AT=name` kills at the first time the step is reached, `name:3` at the third. Without the
variable a step costs one comparison. tests/test_crash_points.py restarts from every one of them.
"""

import os
import signal

_name, _, _count = os.environ.get("TIDEMARK_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def reach(step: str) -> None:
    """Say that a step is reached; the process ends here when a test asked for it."""
    global _left
    if step != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
