"""`python cli/die_with_parent.py PARENT_PID COMMAND...`: run a command that the kernel ends with its parent.

PR_SET_PDEATHSIG survives exec, so this sets it and becomes the command. The signal comes when the thread that
started us ends; start us from a thread that lives as long as the process, such as the main one.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it died before we asked
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])
