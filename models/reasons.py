"""Why an item stands in a list: which of the user's own items put it there, and with what share of its score. Exact.

A user's propagated row is their own term plus a sum over the items they like (models/lightgcn.LightGCN.hop). A score is
linear in that row at the user's fixed norm, so it falls into parts that add up to it, whatever the loss:

    score = sum over liked items j of weight x hop_j . item  +  own term . item  +  the item's bias

A reason is an item with a positive part. Its share is that part over all that speaks for the item: the history's
positive parts, the own term and the bias where they are positive.

The answer has the same bits in blocks of any size, on any number of threads, with and without the compiled kernel:
a product of two rows is added up from the first column to the last, each time rounded to float32; sums over a history
are added up in the order of its items, in float64.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.compiled import AVAILABLE, compiled
from models.graph import Csr
from models.selection import NO_ITEM

LANES = 8  # a list's length is filled up to whole vector registers
LIKES_AT_ONCE = 4096  # without the kernel; times K parts stay in the cache, however long a history is
USERS_AT_ONCE = 512  # that a thread takes


@dataclass(frozen=True)
class Histories:
    """What user rows are made of beside the users' own terms: weight_R[r] x hop_ID, summed over the row's items."""

    items: Csr  # of each row
    weight_R: npt.NDArray[np.float32]
    hop_ID: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reasons:
    """The strongest first, equal ones in ascending order of item row; NO_ITEM and 0 where there are fewer.

    The parts of each score add up to it: history + own + bias.
    """

    item_BKR: npt.NDArray[np.int32]
    share_BKR: npt.NDArray[np.float32]
    history_BK: npt.NDArray[np.float64]
    own_BK: npt.NDArray[np.float64]
    bias_BK: npt.NDArray[np.float64]


def histories_of(liked: Csr, *, scale_U: Tensor, hop_ID: Tensor) -> Histories:
    """Of a fit's own users: `liked` is what that fit was trained on, scale_U and hop_ID are what it exported."""
    root_U = np.sqrt(np.maximum(liked.counts(), 1))
    return Histories(liked, (scale_U.numpy() / root_U).astype(np.float32), hop_ID.numpy())


def reasons(
    histories: Histories,
    rows: npt.NDArray[np.int64],
    item_BK: npt.NDArray[np.int32],
    score_BK: npt.NDArray[np.float32],
    item_ID: Tensor,
    *,
    at_most: int = 3,
    threads: int | None = None,
    by_kernel: bool = AVAILABLE,
) -> Reasons:
    """Why each item of B lists is there. `rows` are the lists' users in `histories`; NO_ITEM has no reason.

    item_ID is (I, D + 1) as it was served, score_BK its inner products with the user rows. Memory: 32 + 12 x at_most
    bytes a place of a list, however long the histories are. Without the compiled kernel the same bits come from numpy,
    some twenty times slower. Raises ValueError where no reason is asked for.
    """
    if at_most < 1:
        raise ValueError(f"at_most is {at_most}: who wants no reasons need not ask for any")
    num_lists, k = item_BK.shape
    best = np.zeros((num_lists, k, at_most), dtype=np.float32)
    found = Reasons(
        item_BKR=np.full((num_lists, k, at_most), NO_ITEM, dtype=np.int32),
        share_BKR=np.zeros((num_lists, k, at_most), dtype=np.float32),
        history_BK=np.zeros((num_lists, k)),
        own_BK=np.zeros((num_lists, k)),
        bias_BK=np.zeros((num_lists, k)),
    )
    positive_BK = np.zeros((num_lists, k))
    rows, item_BK = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(item_BK, np.int32)
    liked, hop_ID = histories.items, np.ascontiguousarray(histories.hop_ID)
    tables = (np.asarray(liked.indptr), np.asarray(liked.indices), histories.weight_R, hop_ID, item_ID.numpy())
    written = (found.history_BK, positive_BK, best, found.item_BKR)
    explain = _explain_compiled if by_kernel else _explain_in_numpy

    def explain_some(start: int) -> None:
        some = slice(start, start + USERS_AT_ONCE)
        explain(rows[some], item_BK[some], *tables, *(array[some] for array in written))

    starts = range(0, num_lists, USERS_AT_ONCE)
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        list(pool.map(explain_some, starts))
    _share_out(found, positive_BK, best, item_BK, score_BK, item_ID.numpy())
    return found


def _share_out(
    found: Reasons,
    positive_BK: np.ndarray,
    best: np.ndarray,
    item_BK: np.ndarray,
    score_BK: np.ndarray,
    item_ID: np.ndarray,
) -> None:
    """What is left of a score beside history and bias is the own term's."""
    listed_BK = item_BK != NO_ITEM
    found.bias_BK[:] = np.where(listed_BK, item_ID[item_BK, -1], 0.0)
    found.own_BK[:] = np.where(listed_BK, score_BK, 0.0) - found.bias_BK - found.history_BK
    speaks_for_BK = positive_BK + np.maximum(found.own_BK, 0.0) + np.maximum(found.bias_BK, 0.0)
    np.divide(best, speaks_for_BK[:, :, None], out=found.share_BKR, where=best > 0.0, casting="same_kind")


# ---- the two ways to the parts; both write history, positive, best and reason of the lists at hand


def _explain_in_numpy(
    rows: np.ndarray,
    item_BK: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    weight_R: np.ndarray,
    hop_ID: np.ndarray,
    item_ID: np.ndarray,
    history_BK: np.ndarray,
    positive_BK: np.ndarray,
    best_BKR: np.ndarray,
    reason_BKR: np.ndarray,
) -> None:
    at_most = best_BKR.shape[2]
    for lines, entries in _pieces(indptr[rows], indptr[rows + 1]):
        liked_E = indices[entries]
        part_EK = _parts_of(lines, liked_E, item_BK, hop_ID, item_ID)
        part_EK *= weight_R[rows[lines]][:, None]
        part_EK[item_BK[lines] == NO_ITEM] = 0.0
        for line in np.unique(lines):
            of_line = lines == line
            part_eK = part_EK[of_line]
            for sum_K, terms in ((history_BK[line], part_eK), (positive_BK[line], np.maximum(part_eK, 0.0))):
                # Not `sum`, which adds up in pairs where that is faster.
                sum_K[:] = np.cumsum(np.vstack([sum_K, terms]), axis=0, dtype=np.float64)[-1]
            value = np.vstack([best_BKR[line].T, part_eK])
            item = np.vstack([reason_BKR[line].T, np.repeat(liked_E[of_line, None], part_eK.shape[1], axis=1)])
            first = np.argsort(-value, axis=0, kind="stable")[:at_most]
            value, item = np.take_along_axis(value, first, 0), np.take_along_axis(item, first, 0)
            best_BKR[line] = np.where(value > 0.0, value, 0.0).T
            reason_BKR[line] = np.where(value > 0.0, item, NO_ITEM).T


def _pieces(start_B: np.ndarray, stop_B: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every line's entries in their order, so many at once: (line, entry) of each."""
    line = np.repeat(np.arange(len(start_B)), stop_B - start_B)
    before = np.cumsum(stop_B - start_B) - (stop_B - start_B)
    for start in range(0, len(line), LIKES_AT_ONCE):
        lines = line[start : start + LIKES_AT_ONCE]
        yield lines, start_B[lines] + np.arange(start, start + len(lines)) - before[lines]


def _parts_of(
    lines: np.ndarray, liked_E: np.ndarray, item_BK: np.ndarray, hop_ID: np.ndarray, item_ID: np.ndarray
) -> np.ndarray:
    """(E, K) the first hop's inner product with each item of its line's list, column by column."""
    first, last = lines[0], lines[-1] + 1
    item_DbK = np.ascontiguousarray(np.moveaxis(item_ID[item_BK[first:last]], 2, 0))
    hop_DE = np.ascontiguousarray(hop_ID[liked_E].T)
    part_EK = np.zeros((len(lines), item_BK.shape[1]), dtype=np.float32)
    for column, hop_E in enumerate(hop_DE):
        part_EK += hop_E[:, None] * item_DbK[column][lines - first]
    return part_EK


def _explain(  # type: ignore[no-untyped-def]
    rows,
    item_BK,
    indptr,
    indices,
    weight_R,
    hop_ID,
    item_ID,
    history_BK,
    positive_BK,
    best_BKR,
    reason_BKR,
):
    """The same in loops, to be compiled: K parts at a time stand side by side in vector registers."""
    k, width, at_most = item_BK.shape[1], hop_ID.shape[1], best_BKR.shape[2]
    lanes = (k + LANES - 1) // LANES * LANES
    item_DL = np.zeros((width, lanes), dtype=np.float32)
    part_L = np.zeros(lanes, dtype=np.float32)
    by_eight = width // 8 * 8
    for line in range(len(rows)):
        for place in range(k):
            item = item_BK[line, place]
            for column in range(width):
                item_DL[column, place] = item_ID[item, column] if item >= 0 else np.float32(0.0)
        weight = weight_R[rows[line]]
        for entry in range(indptr[rows[line]], indptr[rows[line] + 1]):
            liked = indices[entry]
            hop_D = hop_ID[liked]
            for lane in range(lanes):
                part_L[lane] = 0.0
            for c in range(0, by_eight, 8):
                for lane in range(lanes):
                    # From the left, each sum rounded: the order that the columns have.
                    part_L[lane] = (
                        part_L[lane]
                        + hop_D[c] * item_DL[c, lane]
                        + hop_D[c + 1] * item_DL[c + 1, lane]
                        + hop_D[c + 2] * item_DL[c + 2, lane]
                        + hop_D[c + 3] * item_DL[c + 3, lane]
                        + hop_D[c + 4] * item_DL[c + 4, lane]
                        + hop_D[c + 5] * item_DL[c + 5, lane]
                        + hop_D[c + 6] * item_DL[c + 6, lane]
                        + hop_D[c + 7] * item_DL[c + 7, lane]
                    )
            for c in range(by_eight, width):
                for lane in range(lanes):
                    part_L[lane] = part_L[lane] + hop_D[c] * item_DL[c, lane]
            for place in range(k):
                part = part_L[place] * weight
                history_BK[line, place] += part
                if part > 0.0:
                    positive_BK[line, place] += part
                    if part > best_BKR[line, place, at_most - 1]:
                        rank = at_most - 1
                        while rank > 0 and part > best_BKR[line, place, rank - 1]:
                            best_BKR[line, place, rank] = best_BKR[line, place, rank - 1]
                            reason_BKR[line, place, rank] = reason_BKR[line, place, rank - 1]
                            rank -= 1
                        best_BKR[line, place, rank] = part
                        reason_BKR[line, place, rank] = liked


_explain_compiled = compiled(_explain)
