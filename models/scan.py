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

from models.compiled import compiled, inlined

LAST_COLUMN = 0x7FFFFFFF
BINS = 256  # of a count of rough scores
MINUS_INF_16 = np.int16(0xFF80 - 0x10000)  # the bits of -inf
MINUS_INF_32 = np.int32(0xFF800000 - 0x100000000)
Whole = np.int64 | int
Bits = npt.NDArray[np.int16] | npt.NDArray[np.int32]
# Of each row: exact scores and columns of a heap, and how many; codes and columns that were noted, how many, the bar.
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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


@inlined
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
def largest_of_runs(row: Bits, run: int, largest: Bits) -> None:
    for number in range(largest.shape[0]):
        part = row[number * run : number * run + run]  # a slice of its own: else the loop below is not vectorised
        most = part[0]
        for column in range(part.shape[0]):
            most = max(most, part[column])
        largest[number] = most


@compiled
def at_most_the_kth(values: np.ndarray, k: int, lowest: Whole, count_BINS: np.ndarray) -> Whole:
    """The lower edge of the bin that holds the K-th largest; `lowest` where fewer than K are so large.

    Counting into bins is faster than a heap or a partition, whose branches nobody can predict.
    """
    least, most, enough = np.int64(2**62), lowest, 0
    for place in range(values.shape[0]):
        value = values[place]
        if value >= lowest:
            enough += 1
            least, most = min(least, value), max(most, value)
    if enough < k:
        return lowest
    shift = 0
    while (most - least) >> shift >= count_BINS.shape[0]:
        shift += 1
    count_BINS[:] = 0
    for place in range(values.shape[0]):
        if values[place] >= lowest:
            count_BINS[(values[place] - least) >> shift] += 1
    missing, edge = k, count_BINS.shape[0]
    while missing > 0:
        edge -= 1
        missing -= int(count_BINS[edge])
    return least + (np.int64(edge) << shift)


@compiled
def turn_negative(row: Bits, turning: Whole) -> None:
    """Negative numbers order backwards as integers: turn them round, or back."""
    for column in range(row.shape[0]):
        if row[column] < 0:
            row[column] ^= turning


@compiled
def bar_of(code: Whole, shift: int, rounding: np.float32, slack: np.float32) -> Whole:
    """What a rough score must reach where K others reach `code`: theirs may be lower in truth, its own higher."""
    if shift == 0 and slack == 0.0:
        return code  # nothing was rounded, and infinities stay what they are
    value = value_of(code << shift)
    return ordered_bits(np.float32(value - abs(value) * rounding - 2 * slack)) >> shift


@compiled
def collect(
    bits_BM: Bits,
    first: int,
    run: int,
    slack_B: np.ndarray,
    user_BD: np.ndarray,
    item_ID: np.ndarray,
    item_of_column: np.ndarray,
    found: Found,
) -> None:
    """Note every column that could be among its row's K best. The block is left as it was.

    bits_BM: scores as integers, 16 (bfloat16) or 32 (float32) wide, of columns first.. ; -inf: never noted.
    The exact scores lie at most slack_B from what was rounded into the block; see `exact_score` for the tables.
    """
    score_BK, _, _, code_BP, noted_BP, num_noted_B, bar_B = found
    num_rows, num_columns = bits_BM.shape
    k, room = score_BK.shape[1], code_BP.shape[1]
    shift = 16 if bits_BM.itemsize == 2 else 0
    turning = np.int64(0x7FFF) if bits_BM.itemsize == 2 else np.int64(0x7FFFFFFF)
    lowest = np.int64(-32640) if bits_BM.itemsize == 2 else np.int64(-2139095040)  # the smallest above -inf, ordered
    rounding = np.float32(2.0**-8) if bits_BM.itemsize == 2 else np.float32(0.0)
    num_runs = (num_columns + run - 1) // run
    largest = np.empty(num_runs, bits_BM.dtype)
    seen = np.empty(room + num_runs, np.int64)
    count_BINS = np.empty(BINS, np.int64)
    term_D = np.empty(user_BD.shape[1], np.float32)
    for b in range(num_rows):
        row, slack, noted = bits_BM[b], slack_B[b], num_noted_B[b]
        largest_of_runs(row, run, largest)
        turned = False
        while True:
            bar = max(bar_B[b], lowest)
            if noted + num_runs >= k:
                for place in range(noted):
                    seen[place] = code_BP[b, place]
                for number in range(num_runs):
                    seen[noted + number] = largest[number]
                kth = at_most_the_kth(seen[: noted + num_runs], k, lowest, count_BINS)
                if kth > lowest:
                    bar = max(bar, bar_of(kth, shift, rounding, slack))
            if bar > 0 or turned:
                break
            turn_negative(row, turning)
            largest_of_runs(row, run, largest)
            turned = True
        for number in range(num_runs):
            if largest[number] < bar:
                continue
            part = row[number * run : number * run + run]
            for offset in range(part.shape[0]):
                if part[offset] < bar:
                    continue
                if noted == room:
                    noted, bar = make_room(
                        b, slack, shift, rounding, bar, count_BINS, term_D, user_BD, item_ID, item_of_column, found
                    )
                    if part[offset] < bar:
                        continue
                code_BP[b, noted], noted_BP[b, noted] = part[offset], first + number * run + offset
                noted += 1
        num_noted_B[b], bar_B[b] = noted, bar
        if turned:
            turn_negative(row, turning)


@inlined
def exact_score(
    code: Whole,
    shift: int,
    user_D: np.ndarray,
    item_ID: np.ndarray,
    item: int,
    term_D: np.ndarray,
) -> np.float32:
    """Added up from the tables; without any (no columns), the block's own value is the score."""
    if user_D.shape[0] == 0:
        return value_of(code << shift)
    return exact_product(user_D, item_ID[item], term_D)


@compiled
def make_room(
    b: int,
    slack: np.float32,
    shift: int,
    rounding: np.float32,
    bar: Whole,
    count_BINS: np.ndarray,
    term_D: np.ndarray,
    user_BD: np.ndarray,
    item_ID: np.ndarray,
    item_of_column: np.ndarray,
    found: Found,
) -> tuple[Whole, Whole]:
    """Drop what the bar has passed meanwhile; where much is left (many like scores), add it up and keep the K best."""
    score_BK, column_BK, size_B, code_BP, noted_BP, _, _ = found
    k, room = score_BK.shape[1], code_BP.shape[1]
    bar = max(bar, bar_of(at_most_the_kth(code_BP[b].astype(np.int64), k, bar, count_BINS), shift, rounding, slack))
    left = 0
    for place in range(room):
        if code_BP[b, place] >= bar:
            code_BP[b, left], noted_BP[b, left] = code_BP[b, place], noted_BP[b, place]
            left += 1
    if 4 * left <= 3 * room:
        return left, bar
    for place in range(left):
        column = noted_BP[b, place]
        score = exact_score(code_BP[b, place], shift, user_BD[b], item_ID, item_of_column[column], term_D)
        size_B[b] = offer(score_BK[b], column_BK[b], size_B[b], score, column)
    if size_B[b] == k:
        bar = max(bar, ordered_bits(np.float32(score_BK[b, 0] - slack)) >> shift)
    return 0, bar


@compiled
def finish(
    shift: int,
    user_BD: np.ndarray,
    item_ID: np.ndarray,
    item_of_column: np.ndarray,
    found: Found,
) -> None:
    """Add up what was noted, keep each row's K best, best first."""
    score_BK, column_BK, size_B, code_BP, noted_BP, num_noted_B, bar_B = found
    k, room = score_BK.shape[1], code_BP.shape[1]
    term_D = np.empty(user_BD.shape[1], np.float32)
    score_P, column_P = np.empty(k + room, np.float32), np.empty(k + room, np.int32)
    key_P, first_K = np.empty(k + room, np.int64), np.empty(k, np.int32)
    bits_P, score_K = score_P.view(np.int32), first_K.view(np.float32)
    for b in range(len(size_B)):
        user_D, count = user_BD[b], size_B[b]
        score_P[:count], column_P[:count] = score_BK[b, :count], column_BK[b, :count]
        for place in range(num_noted_B[b]):
            code, column = code_BP[b, place], noted_BP[b, place]
            if code >= bar_B[b]:
                column_P[count] = column
                score_P[count] = exact_score(code, shift, user_D, item_ID, item_of_column[column], term_D)
                count += 1
        for place in range(count):  # one number that orders by score, then by column backwards
            bits = np.int64(bits_P[place])
            key_P[place] = ((bits if bits >= 0 else bits ^ 0x7FFFFFFF) << 32) | (LAST_COLUMN - column_P[place])
        ordered = np.sort(key_P[:count])
        size = min(k, count)
        for place in range(size):
            key = ordered[count - 1 - place]
            bits = key >> 32
            first_K[place] = bits if bits >= 0 else bits ^ 0x7FFFFFFF
            column_BK[b, place] = LAST_COLUMN - (key & 0xFFFFFFFF)
        score_BK[b, :size] = score_K[:size]
        size_B[b] = size
