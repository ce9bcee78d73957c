"""No process that we start outlives the one that started it. Without torch, so that any child can afford it."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
PARENT_PID_VARIABLE = "NIGHTGRAPH_PARENT_PID"


def keep_freed_memory() -> None:
    """Have the C library keep what this process frees, instead of handing it back to the kernel (glibc).

    A step allocates whole tables anew. Above 32 MiB each would come as fresh pages that the kernel has to clear: a
    tenth of a step. Nothing is kept that was not needed at the same time once.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt: slower, and right
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
