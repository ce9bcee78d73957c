"""No process that we start outlives the one that started it. Without torch, so that any child can afford it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PARENT_PID_VARIABLE = "NIGHTGRAPH_PARENT_PID"


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however it went (Linux).

    The starter leaves its process id in NIGHTGRAPH_PARENT_PID, or a parent that died before this call goes unnoticed.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(os.environ.get(PARENT_PID_VARIABLE, os.getppid())):
        sys.exit("the process that started this one is gone")
