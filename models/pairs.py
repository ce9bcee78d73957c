"""From events to pairs: the order of events, and what all events of one user and item come to.

Legend: N events in any order, P pairs. Compiled where numba is (models/compiled.py); the plain numpy path gives the
same bytes. Nothing here depends on how the events were divided over files, runs or threads.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.compiled import AVAILABLE, compiled

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000
KIND_BITS = 8
MICRO = 1_000_000  # of a weight of 1: strengths add up in whole numbers, so that no order of adding can matter
NEVER = -1
KEY_BITS = 63  # one sorted integer holds user, item and position
EVENTS_AT_ONCE = 1 << 18  # sorted together: their keys and stamps stay in the processor's cache
LONG_GROUP = 48  # events of one pair that are better merged than inserted


@dataclass(frozen=True)
class Events:
    """Columns of equal length: rows of the registry, and when and what as one number (`stamp_of`)."""

    user_N: Int32
    item_N: Int32
    stamp_N: Int64

    def __len__(self) -> int:
        return len(self.user_N)

    def take(self, rows: slice | npt.NDArray[np.generic]) -> "Events":
        """Of some rows: a slice is a view, a mask or positions copy."""
        return Events(self.user_N[rows], self.item_N[rows], self.stamp_N[rows])


@dataclass(frozen=True)
class Folding:
    """How the events of a pair become one. Without strengths the latest event decides, of simultaneous ones the best.

    With them, each distinct event adds strength_KD[its kind, its age in whole days before `until_us`] (ages beyond the
    table take its last column), in millionths, and the pair is liked from `threshold` millionths on.
    """

    from_us: int
    until_us: int
    strength_KD: Int64 | None = None
    threshold: int = 0


@dataclass(frozen=True)
class Pairs:
    """One row a pair, by user, then item. `user_U` are the users that have one, `count_U` how many each."""

    user_U: Int32
    count_U: Int64
    item_P: Int32
    time_P: Int64  # the latest event
    liked_P: Bool
    first_seen_P: Int64
    first_liked_P: Int64  # NEVER where it was never liked; with strengths, the latest event's time where it is liked
    num_later: int  # events from until_us on
    num_before: int  # events before from_us
    num_repeats: int  # events that stand here twice, in all columns: the further ones


def stamp_of(time_N: Int64, kind_N: npt.NDArray[np.uint8]) -> Int64:
    """Microseconds since 1970 UTC (up to the year 3111) and the kind, in one number that orders like the two."""
    return time_N << KIND_BITS | kind_N


def strengths(weight_K: Int64, *, half_life_days: float | None) -> Int64:
    """The table of `Folding`: weights in millionths, halved every half life, down to the day when nothing is left."""
    if half_life_days is None:
        return weight_K.reshape(-1, 1).astype(np.int64)
    most = max(2, int(weight_K.max(initial=1)))
    days = int(np.ceil(half_life_days * (np.log2(most) + 1))) + 2
    return np.rint(weight_K[:, None] * np.exp2(-np.arange(days) / half_life_days)).astype(np.int64)


# ---- the order of events


def in_order(events: Events) -> tuple[Events, Int64]:
    """By user, item, time and kind; and where each event stood. Equal events keep their order."""
    if not AVAILABLE or not len(events):
        return _in_plain_order(events)
    low, high = int(events.user_N.min()), int(events.user_N.max())
    position_N = np.arange(len(events))
    if len(events) <= EVENTS_AT_ONCE:
        return _in_order_at_once(events, position_N)
    span_bits = (high - low).bit_length()
    shift = max(0, span_bits - (len(events) // EVENTS_AT_ONCE).bit_length())
    count_B = np.zeros(((high - low) >> shift) + 2, np.int64)
    divided = _like(events)
    _divide(*_columns(events), low, shift, count_B, *_columns(divided), position_N)
    sorted_ = _like(events)
    ends = count_B[:-1].tolist()  # where each part ended, once all events were put there
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = slice(start, end)
        if end > start:
            some, position_N[part] = _in_order_at_once(divided.take(part), position_N[part])
            sorted_.user_N[part], sorted_.item_N[part], sorted_.stamp_N[part] = _columns(some)
    return sorted_, position_N


def _columns(events: Events) -> tuple[Int32, Int32, Int64]:
    return events.user_N, events.item_N, events.stamp_N


def _like(events: Events) -> Events:
    return Events(np.empty_like(events.user_N), np.empty_like(events.item_N), np.empty_like(events.stamp_N))


def _in_plain_order(events: Events) -> tuple[Events, Int64]:
    order = np.lexsort((events.stamp_N, events.item_N, events.user_N))
    return events.take(order), order


def _in_order_at_once(events: Events, position_N: Int64) -> tuple[Events, Int64]:
    """One integer an event, user | item | place, sorts several times faster than columns (vector instructions)."""
    low, item_bits = int(events.user_N.min()), int(events.item_N.max()).bit_length()
    place_bits = len(events).bit_length()
    if (int(events.user_N.max()) - low).bit_length() + item_bits + place_bits > KEY_BITS:
        some, order = _in_plain_order(events)
        return some, position_N[order]
    key_N, out = np.empty(len(events), np.int64), _like(events)
    sorted_position_N = np.empty_like(position_N)
    _pack(events.user_N, events.item_N, low, item_bits, place_bits, key_N)
    key_N.sort()
    _unpack(key_N, low, item_bits, place_bits, events.stamp_N, position_N, *_columns(out), sorted_position_N)
    return out, sorted_position_N


@compiled
def _divide(
    user_N: Int32,
    item_N: Int32,
    stamp_N: Int64,
    low: int,
    shift: int,
    count_B: Int64,
    user_out_N: Int32,
    item_out_N: Int32,
    stamp_out_N: Int64,
    position_N: Int64,
) -> None:
    """Bring events of neighbouring users together, in the order in which they come; count_B ends as the parts' ends."""
    for place in range(len(user_N)):
        count_B[((user_N[place] - low) >> shift) + 1] += 1
    for part in range(1, len(count_B)):
        count_B[part] += count_B[part - 1]
    for place in range(len(user_N)):
        part = (user_N[place] - low) >> shift
        at = count_B[part]
        user_out_N[at], item_out_N[at], stamp_out_N[at] = user_N[place], item_N[place], stamp_N[place]
        position_N[at] = place
        count_B[part] = at + 1


@compiled
def _pack(user_N: Int32, item_N: Int32, low: int, item_bits: int, place_bits: int, key_N: Int64) -> None:
    for place in range(len(user_N)):
        pair = (np.int64(user_N[place]) - low) << item_bits | np.int64(item_N[place])
        key_N[place] = pair << place_bits | place


@compiled
def _unpack(
    key_N: Int64,
    low: int,
    item_bits: int,
    place_bits: int,
    stamp_N: Int64,
    position_N: Int64,
    user_out_N: Int32,
    item_out_N: Int32,
    stamp_out_N: Int64,
    position_out_N: Int64,
) -> None:
    """Out of sorted keys the events, those of one pair in the order of their stamps."""
    place_mask, item_mask = (np.int64(1) << place_bits) - 1, (np.int64(1) << item_bits) - 1
    start = 0
    for at in range(len(key_N)):
        key = key_N[at]
        pair, place = key >> place_bits, key & place_mask
        user_out_N[at], item_out_N[at] = low + (pair >> item_bits), pair & item_mask
        stamp_out_N[at], position_out_N[at] = stamp_N[place], position_N[place]
        if at + 1 == len(key_N) or key_N[at + 1] >> place_bits != pair:
            if at > start:
                _order_stamps(stamp_out_N[start : at + 1], position_out_N[start : at + 1])
            start = at + 1


@compiled
def _order_stamps(stamp_N: Int64, position_N: Int64) -> None:
    """Both in the order of the stamps; what is equal keeps its order."""
    if len(stamp_N) > LONG_GROUP:
        order = np.argsort(stamp_N, kind="mergesort")
        stamp_N[:], position_N[:] = stamp_N[order], position_N[order]
        return
    for place in range(1, len(stamp_N)):
        stamp, position, at = stamp_N[place], position_N[place], place
        while at > 0 and stamp_N[at - 1] > stamp:
            stamp_N[at], position_N[at] = stamp_N[at - 1], position_N[at - 1]
            at -= 1
        stamp_N[at], position_N[at] = stamp, position


def is_repeat(events: Events) -> Bool:
    """Of ordered events, whether the one before is the same."""
    repeat_N = np.zeros(len(events), np.bool_)
    repeat_N[1:] = events.stamp_N[1:] == events.stamp_N[:-1]
    repeat_N[1:] &= events.item_N[1:] == events.item_N[:-1]
    repeat_N[1:] &= events.user_N[1:] == events.user_N[:-1]
    return repeat_N


# ---- pairs


def fold(events: Events, folding: Folding) -> Pairs:
    """Every pair's latest event and its first ones, of the events within [from_us, until_us)."""
    ordered, _ = in_order(events)
    return (_fold_compiled if AVAILABLE else _fold_plain)(ordered, folding)


def _fold_compiled(events: Events, folding: Folding) -> Pairs:
    most = len(events)
    user_U, count_U = np.empty(most, np.int32), np.empty(most, np.int64)
    item_P, liked_P = np.empty(most, np.int32), np.empty(most, np.bool_)
    time_P, seen_P, first_P = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    users, pairs, later, before, repeats = _fold(
        events.user_N,
        events.item_N,
        events.stamp_N,
        folding.from_us,
        folding.until_us,
        np.zeros((0, 0), np.int64) if folding.strength_KD is None else folding.strength_KD,
        folding.threshold,
        user_U,
        count_U,
        item_P,
        time_P,
        liked_P,
        seen_P,
        first_P,
    )
    return Pairs(
        user_U[:users],
        count_U[:users],
        item_P[:pairs],
        time_P[:pairs],
        liked_P[:pairs],
        seen_P[:pairs],
        first_P[:pairs],
        int(later),
        int(before),
        int(repeats),
    )


@compiled
def _fold(
    user_N: Int32,
    item_N: Int32,
    stamp_N: Int64,
    from_us: int,
    until_us: int,
    strength_KD: Int64,
    threshold: int,
    user_U: Int32,
    count_U: Int64,
    item_P: Int32,
    time_P: Int64,
    liked_P: Bool,
    seen_P: Int64,
    first_P: Int64,
) -> tuple[int, int, int, int, int]:
    users, pairs, later, before, repeats = 0, 0, 0, 0, 0
    last = -1  # the event before, of those within the times
    strength = np.int64(0)
    days = strength_KD.shape[1]
    for place in range(len(user_N)):
        stamp = stamp_N[place]
        time, kind = stamp >> KIND_BITS, stamp & ((1 << KIND_BITS) - 1)
        if time >= until_us:
            later += 1
            continue
        if time < from_us:
            before += 1
            continue
        same_user = last >= 0 and user_N[place] == user_N[last]
        same_pair = same_user and item_N[place] == item_N[last]
        if same_pair and stamp == stamp_N[last]:
            repeats += 1
            continue
        last = place
        if not same_user:
            user_U[users], count_U[users] = user_N[place], 0
            users += 1
        if not same_pair:
            count_U[users - 1] += 1
            item_P[pairs], seen_P[pairs], first_P[pairs] = item_N[place], time, NEVER
            strength = np.int64(0)
            pairs += 1
        at = pairs - 1
        time_P[at] = time  # the last of a pair is its latest, and of simultaneous ones the one of the highest kind
        if days > 0:
            strength += strength_KD[kind, min((until_us - 1 - time) // DAY_US, days - 1)]
            liked_P[at] = strength >= threshold
            first_P[at] = time if strength >= threshold else NEVER
        else:
            liked_P[at] = kind > 0
            if kind > 0 and first_P[at] == NEVER:
                first_P[at] = time
    return users, pairs, later, before, repeats


def _fold_plain(events: Events, folding: Folding) -> Pairs:
    """The same in whole arrays."""
    time_N = events.stamp_N >> KIND_BITS
    later, before = time_N >= folding.until_us, time_N < folding.from_us
    some = events.take(~later & ~before)
    repeat = is_repeat(some)
    some = some.take(~repeat)
    user_N, item_N = some.user_N, some.item_N
    time_N, kind_N = some.stamp_N >> KIND_BITS, some.stamp_N & ((1 << KIND_BITS) - 1)
    new_pair = np.ones(len(some), np.bool_)
    new_pair[1:] = (user_N[1:] != user_N[:-1]) | (item_N[1:] != item_N[:-1])
    starts = np.flatnonzero(new_pair)
    ends = np.append(starts[1:], len(some))[: len(starts)] - 1
    if folding.strength_KD is None:
        liked_P = kind_N[ends] > 0
        unknown = np.iinfo(np.int64).max
        first_P = _by_pair(np.minimum, np.where(kind_N > 0, time_N, unknown), starts)
        first_P = np.where(first_P == unknown, NEVER, first_P)
    else:
        age_N = np.minimum((folding.until_us - 1 - time_N) // DAY_US, folding.strength_KD.shape[1] - 1)
        liked_P = _by_pair(np.add, folding.strength_KD[kind_N, age_N], starts) >= folding.threshold
        first_P = np.where(liked_P, time_N[ends], NEVER)
    user_U, count_U = np.unique(user_N[starts], return_counts=True)
    columns = (item_N[starts], time_N[ends], liked_P, time_N[starts], first_P)
    return Pairs(user_U, count_U, *columns, int(later.sum()), int(before.sum()), int(repeat.sum()))


def _by_pair(how: np.ufunc, value_N: Int64, starts: Int64) -> Int64:
    return how.reduceat(value_N, starts) if len(starts) else value_N
