"""The K best of each row of a block of scores, compiled: the block is read once, and little of it twice.

A block may hold approximate scores (a product in 16 or 32 bits, off by at most `slack`); whatever could be among the K
best is then added up exactly, and only exact scores are compared. Nothing is proved afterwards: an item is left out
only where its approximate score says that its exact one cannot enter.

How: the scores are looked at as signed integers of the same width, which order like the numbers as long as they are
positive. The largest of each run of columns (vector instructions) gives a first bar, the K-th largest of these, so that
later about K columns and not K x log(columns / K) have to be looked at one by one.
"""

import numpy as np
import numpy.typing as npt

from models.compiled import compiled

MINUS_INF_16 = np.int16(0xFF80 - 0x10000)  # the bits of -inf
MINUS_INF_32 = np.int32(0xFF800000 - 0x100000000)
Whole = np.int64 | int
Bits = npt.NDArray[np.int16] | npt.NDArray[np.int32]


@compiled
def mask_pairs(bits_BM: Bits, first: int, column_of_item: np.ndarray, indptr: np.ndarray, item: np.ndarray) -> None:
    """-inf where row b's items indices[indptr[b]:indptr[b + 1]] stand; columns first.. of all."""
    minus_inf = MINUS_INF_16 if bits_BM.itemsize == 2 else MINUS_INF_32
    for b in range(bits_BM.shape[0]):
        for position in range(indptr[b], indptr[b + 1]):
            column = column_of_item[item[position]] - first
            if 0 <= column < bits_BM.shape[1]:
                bits_BM[b, column] = minus_inf


@compiled
def mask_groups(bits_BM: Bits, first: int, allowed_GC: np.ndarray, group_B: np.ndarray) -> None:
    """-inf where the row's group may not have the column."""
    minus_inf = MINUS_INF_16 if bits_BM.itemsize == 2 else MINUS_INF_32
    for b in range(bits_BM.shape[0]):
        row = bits_BM[b]
        allowed = allowed_GC[group_B[b], first : first + row.shape[0]]
        for column in range(row.shape[0]):
            if not allowed[column]:
                row[column] = minus_inf


@compiled
def ordered_bits(value: np.float32) -> Whole:
    """The number's bits as an integer that orders like it, negative ones too."""
    box = np.empty(1, np.float32)
    box[0] = value
    bits = np.int64(box.view(np.int32)[0])
    return bits if bits >= 0 else bits ^ 0x7FFFFFFF


@compiled
def value_of(ordered: Whole) -> np.float32:
    """Back from `ordered_bits`."""
    box = np.empty(1, np.int32)
    box[0] = ordered if ordered >= 0 else ordered ^ 0x7FFFFFFF
    return box.view(np.float32)[0]


@compiled
def exact_product(one_D: np.ndarray, other_D: np.ndarray, term_D: np.ndarray) -> np.float32:
    """The inner product, added up by halves as models/scorers.sum_by_halves does. `term_D` is scratch."""
    width = one_D.shape[0]
    for d in range(width):
        term_D[d] = one_D[d] * other_D[d]
    while width > 1:
        half = width // 2
        for d in range(half):
            term_D[d] = term_D[d] + term_D[half + d]
        if width & 1:
            term_D[0] = term_D[0] + term_D[2 * half]
        width = half
    return term_D[0] + np.float32(0.0)  # -0.0 becomes 0.0, or the two would not count as a tie


@compiled
def comes_first(score: np.float32, column: int, other_score: np.float32, other_column: int) -> bool:
    """Whether the first stands before the other in a list: a larger score, or an equal one and a smaller column.

    What is no number stands first: it must not hide (models/topk.py).
    """
    if score == other_score:
        return column < other_column
    if other_score != other_score:
        return bool(score != score) and column < other_column
    return bool(score > other_score or score != score)


@compiled
def sift_down(score_K: np.ndarray, column_K: np.ndarray, root: int, size: int) -> None:
    """Restore a heap whose root is the worst entry, after the entry at `root` was replaced."""
    while True:
        worst, child = root, 2 * root + 1
        for below in (child, child + 1):
            if below < size and comes_first(score_K[worst], column_K[worst], score_K[below], column_K[below]):
                worst = below
        if worst == root:
            return
        score_K[root], score_K[worst] = score_K[worst], score_K[root]
        column_K[root], column_K[worst] = column_K[worst], column_K[root]
        root = worst


@compiled
def offer(score_K: np.ndarray, column_K: np.ndarray, size: int, score: np.float32, column: int) -> int:
    """Keep the entry if it is among the K best so far. Returns how many there are."""
    if size < score_K.shape[0]:
        at = size
        score_K[at], column_K[at] = score, column
        while at > 0:
            above = (at - 1) // 2
            if not comes_first(score_K[above], column_K[above], score_K[at], column_K[at]):
                break
            score_K[at], score_K[above] = score_K[above], score_K[at]
            column_K[at], column_K[above] = column_K[above], column_K[at]
            at = above
        return size + 1
    if comes_first(score, column, score_K[0], column_K[0]):
        score_K[0], column_K[0] = score, column
        sift_down(score_K, column_K, 0, size)
    return size


@compiled
def sort_heaps(score_BK: np.ndarray, column_BK: np.ndarray, size_B: np.ndarray) -> None:
    """Heaps become lists, best first."""
    for b in range(len(size_B)):
        score_K, column_K = score_BK[b], column_BK[b]
        for last in range(size_B[b] - 1, 0, -1):
            score_K[0], score_K[last] = score_K[last], score_K[0]
            column_K[0], column_K[last] = column_K[last], column_K[0]
            sift_down(score_K, column_K, 0, last)


@compiled
def largest_of_runs(row: Bits, run: int, largest: Bits) -> None:
    for number in range(largest.shape[0]):
        part = row[number * run : number * run + run]  # a slice of its own: else the loop below is not vectorised
        most = part[0]
        for column in range(part.shape[0]):
            most = max(most, part[column])
        largest[number] = most


@compiled
def kth_largest(values: Bits, heap_K: np.ndarray) -> Whole:
    """The smallest of the K largest, by a heap of K: a partition mispredicts a branch at most of its steps."""
    k = heap_K.shape[0]
    for place in range(values.shape[0]):
        if place >= k:
            if values[place] <= heap_K[0]:
                continue
            heap_K[0] = values[place]
            at = 0
            while True:
                below = 2 * at + 1
                if below >= k:
                    break
                if below + 1 < k and heap_K[below + 1] < heap_K[below]:
                    below += 1
                if heap_K[at] <= heap_K[below]:
                    break
                heap_K[at], heap_K[below] = heap_K[below], heap_K[at]
                at = below
        else:
            heap_K[place] = values[place]
            at = place
            while at > 0 and heap_K[at] < heap_K[(at - 1) // 2]:
                above = (at - 1) // 2
                heap_K[at], heap_K[above] = heap_K[above], heap_K[at]
                at = above
    return heap_K[0]


@compiled
def turn_negative(row: Bits, turning: Whole) -> None:
    """Negative numbers order backwards as integers: turn them round, or back."""
    for column in range(row.shape[0]):
        if row[column] < 0:
            row[column] ^= turning


@compiled
def collect(
    bits_BM: Bits,
    first: int,
    run: int,
    rescored: bool,
    user_BD: np.ndarray,
    item_ID: np.ndarray,
    item_of_column: np.ndarray,
    slack_B: np.ndarray,
    score_BK: np.ndarray,
    column_BK: np.ndarray,
    size_B: np.ndarray,
) -> None:
    """Offer every column that could be among its row's K best to the row's heap.

    bits_BM: scores as integers, 16 (bfloat16) or 32 (float32) wide, of columns first.. ; -inf: never offered.
    The block is left as it was.
    rescored: exact scores are added up from user_BD and item_ID, at most slack_B from what was rounded into the block;
    else the block's own values are the scores.
    """
    num_rows, num_columns = bits_BM.shape
    k = score_BK.shape[1]
    shift = 16 if bits_BM.itemsize == 2 else 0
    turning = np.int64(0x7FFF) if bits_BM.itemsize == 2 else np.int64(0x7FFFFFFF)
    lowest = np.int64(-32640) if bits_BM.itemsize == 2 else np.int64(-2139095040)  # the smallest above -inf, ordered
    bar: Whole
    rounding = np.float32(2.0**-8) if bits_BM.itemsize == 2 else np.float32(0.0)
    num_runs = (num_columns + run - 1) // run
    largest = np.empty(num_runs, bits_BM.dtype)
    heap_K = np.empty(k, np.int64)
    term_D = np.empty(user_BD.shape[1], np.float32)
    for b in range(num_rows):
        row, slack = bits_BM[b], slack_B[b]
        largest_of_runs(row, run, largest)
        bar, turned = lowest, False
        while True:
            if size_B[b] == k:
                bar = ordered_bits(np.float32(score_BK[b, 0] - slack)) >> shift
            elif num_runs >= k:
                bar = kth_largest(largest, heap_K)
                if rescored and bar >= lowest:
                    value = value_of(bar << shift)
                    bar = ordered_bits(np.float32(value - abs(value) * rounding - 2 * slack)) >> shift
            if bar > 0 or turned:
                break
            turn_negative(row, turning)
            largest_of_runs(row, run, largest)
            turned = True
        bar = max(bar, lowest)
        for number in range(num_runs):
            if largest[number] < bar:
                continue
            for column in range(number * run, min(number * run + run, num_columns)):
                if row[column] < bar:
                    continue
                if rescored:
                    score = exact_product(user_BD[b], item_ID[item_of_column[first + column]], term_D)
                else:
                    score = value_of(np.int64(row[column]) << shift)
                size_B[b] = offer(score_BK[b], column_BK[b], size_B[b], score, first + column)
                if size_B[b] == k:
                    bar = max(bar, ordered_bits(np.float32(score_BK[b, 0] - slack)) >> shift)
        if turned:
            turn_negative(row, turning)
