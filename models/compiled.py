"""Python functions compiled to machine code by numba where it can be imported; the same functions, slowly, elsewhere.

Nothing here allows the compiler to reorder or fuse floating-point operations: compiled and not, the bits are the same.
"""

import os
from collections.abc import Callable
from typing import TypeVar, cast

try:
    import numba
except ImportError:  # a platform without wheels: models/topk.py then selects with torch
    numba = None  # type: ignore[assignment]

Function = TypeVar("Function", bound=Callable[..., object])
SWITCH = "NIGHTGRAPH_COMPILED"  # 0: as if numba were not there
AVAILABLE = numba is not None and os.environ.get(SWITCH, "1") != "0"


def compiled(function: Function) -> Function:
    """Compiled at its first call, for the types of that call; other Python threads go on while it runs."""
    if not AVAILABLE:
        return function
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither beside the code nor in the user's cache may be written: compile in each process
        return cast(Function, numba.njit(nogil=True)(function))


def inlined(function: Function) -> Function:
    """Copied into the compiled functions that call it: for the few that a loop calls millions of times."""
    return cast(Function, numba.njit(inline="always")(function)) if AVAILABLE else function
