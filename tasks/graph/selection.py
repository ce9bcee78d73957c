"""The k-th smallest of more numbers than memory should hold."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

BUCKETS = 1 << 16
FEW = 1 << 20


def smallest(pieces: Callable[[], Iterator[npt.NDArray[np.int64]]], k: int) -> int:
    """What stands at place k, from 0, were all pieces sorted together. They are read again for each narrowing."""
    low = min(int(piece.min()) for piece in pieces() if len(piece))
    high = max(int(piece.max()) for piece in pieces() if len(piece))
    inside = FEW + 1
    while low < high and inside > FEW:
        width = (high - low) // BUCKETS + 1
        counts = np.zeros(BUCKETS, np.int64)
        for piece in pieces():
            of_range = piece[(piece >= low) & (piece <= high)]
            # The distance may be more than int64 holds; as uint64 what wrapped around is right again.
            distance = (of_range - np.int64(low)).view(np.uint64)
            counts += np.bincount((distance // np.uint64(width)).astype(np.int64), minlength=BUCKETS)
        bucket = int(np.searchsorted(np.cumsum(counts), k, side="right"))
        k -= int(counts[:bucket].sum())
        inside = int(counts[bucket])
        low, high = low + bucket * width, min(high, low + (bucket + 1) * width - 1)
    if low == high:
        return low
    few = np.concatenate([piece[(piece >= low) & (piece <= high)] for piece in pieces()])
    return int(np.partition(few, k)[k])
