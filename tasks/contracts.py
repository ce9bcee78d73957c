"""What stages hand to each other: small frozen Refs (paths, counts, fingerprints), never frames or tensors.

A path in a Ref points into the run's work folder on this machine. A fingerprint is the SHA-256 of what the path
holds; a stage's key is made of the fingerprints that go into it (tasks/run.py).
"""

from dataclasses import dataclass, field
from datetime import date, datetime

from tasks.config import IngestConfig, NightlyConfig

LATEST_KEY = "_meta/LATEST.json"  # the one place where readers look
TIERS = ("graph", "fold_in", "segment", "popular")  # in the order in which they follow each other within a list
# Why a valid event is not a pair of its own (Interactions.set_aside), in words.
SET_ASIDE = {
    "older": "older events of the same pair",
    "duplicate": "the same event again",
    "later": "on the night's date or later",
    "before_window": "before the window",
    "bot": "of users with too many events on one day",
    "forgotten": "of people who asked to be forgotten",
}
# What keeps an item out of a list (tasks/recommend/rules.py); the first that does counts.
RULES = ("seen", "blocked", "unavailable", "unlisted", "too_new", "too_old", "segment", "category")


@dataclass(frozen=True)
class WarmSource:
    """The tables that an earlier night left in the store to start from (tasks/warm.py)."""

    as_of: date
    key: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Run:
    """One night: which date, from which pinned inputs, by which settings and code."""

    store_uri: str
    as_of: date  # the first day whose events are not used; also the date of the publication
    # SHA-256 of date, inputs, config, code, the registry's epoch and acts of forgetting, and `warm`: the same key means
    # the same result, up to rounding.
    run_key: str
    input_fingerprint: str  # SHA-256 of the pinned listing (key, size, ETag)
    code_version: str
    config: NightlyConfig
    force: bool
    work_folder: str  # everything this night writes before it publishes
    inputs_path: str  # JSON: the pinned listing
    num_files: int
    num_input_bytes: int
    warm: WarmSource | None = None  # none: training starts cold, because of
    cold_because: str = ""
    registry_epoch: int = 0  # of the registry when the night was opened (tasks/registry)
    registry_forgotten: int = 0  # acts of forgetting until then
    odd_volume: str = ""  # what the check of the days' volumes found and a person overrode


@dataclass(frozen=True)
class Inspection:
    """What was said of each event file: accepted, widened (which is accepted, too) or set aside. Else no night is."""

    accepted: int = 0
    widened: dict[str, list[str]] = field(default_factory=dict)  # key -> what was, as in "user_id Int32 -> Int64"
    set_aside: dict[str, str] = field(default_factory=dict)  # key -> why it cannot be read


@dataclass(frozen=True)
class Interactions:
    """One row for every (user, item) pair with a valid event of the night: what its latest event says, and since when.

    `folder` holds .npy arrays, to be opened memory-mapped. U users with a pair, P pairs by user, then item:

    user_rows       i32 [U]    registry rows (tasks/registry), ascending
    indptr          i64 [U+1]  a user's pairs
    item_row        i32 [P]    registry rows, ascending within a user
    timestamp_us    i64 [P]    the latest event, microseconds since 1970 UTC
    liked           bool [P]   what it says; with event weights, whether they add up to the threshold
    first_seen_us   i64 [P]    the first event
    first_liked_us  i64 [P]    the first like, -1 if there is none; with event weights the latest event of a liked pair

    users.parquet (user_row, user_id) and items.parquet (item_row, item_id) are those with a pair, by row, with the ids
    as they came. rows_in == kept + below_threshold + what is set aside + what is quarantined.
    """

    fingerprint: str
    rows_in: int
    kept: int  # likes
    below_threshold: int  # valid, seen, not liked
    quarantined: dict[str, int]  # rule -> rows
    num_users: int
    num_items: int
    first_event_at: datetime
    last_event_at: datetime
    folder: str = ""
    # older: another event of its pair is later. duplicate: the same event again. later, before_window: outside the
    # night's times. bot, forgotten: of a user who has too many on one day, or who asked to be forgotten.
    set_aside: dict[str, int] = field(default_factory=dict)
    quarantine_files: tuple[str, ...] = ()  # keys: the refused rows as they came, with their file and rule
    inspection: Inspection = field(default_factory=Inspection)
    # Of days, or files where keys have no day: how many there are, and how many of them an earlier night had digested.
    units: int = 0
    units_reused: int = field(default=0, compare=False)  # whoever digested them, the pairs are the same
    odd_days: str = ""  # what the check of the events' days found and a person overrode (tasks/ingest/volume.py)


@dataclass(frozen=True)
class Tables:
    """What the optional tables say (tasks/ingest/tables.py), with the events' ids, in `folder`/<table>.parquet.

    items: item_id, and as far as the table has them available (bool), categories and segments (lists of text),
    published_at (microseconds since 1970 UTC), null where it does not say. users: user_id. blocked: user_id, item_id.
    segments: user_id, segment. All sorted; only items with events, and users with events or in the users table.
    """

    folder: str
    fingerprint: str
    rows: dict[str, int]  # table -> rows; a table that is not there is not named
    ignored: dict[str, int]  # table and reason -> rows that were left out


@dataclass(frozen=True)
class Graph:
    """The split likes as arrays in `folder` (tasks/graph/edges.py lists them), all sorted, row r = r-th smallest id."""

    folder: str
    fingerprint: str
    split: str
    num_users: int
    num_items: int
    num_likes: int
    num_train: int
    num_validation: int
    num_test: int
    num_validation_users: int
    num_test_users: int
    num_test_users_with_history: int
    # The first instant of each part of a split at one moment for everybody; none where each user has their own.
    validation_from_us: int | None = None
    test_from_us: int | None = None
    # With a like in validation or test and none in train.
    cold_users: int = 0
    cold_items: int = 0
    # Fit (train, all) -> what settings keep out of its graph: users, items, likes, over_cap, capped_users
    # (tasks/graph/core.LeftOut).
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputFile:
    """One finished file on local disk that is published; of a table's files, ids of n sort before those of n+1."""

    path: str
    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Fitted:
    """Two fits of the same recipe. `judged` has not seen validation or test; `served` has seen everything."""

    folder: str
    judged_path: str  # safetensors: user_UD and item_ID, whose inner product is the score, the bias its last column;
    served_path: str  # hop_ID, scale_U, fold_ID, fold_length: what rows are made of (models/train.save_tables says how)
    fingerprint: str  # of both files
    epochs: int  # chosen on validation by the judged fit, used by the served one
    best_validation_recall: float
    seconds_judged: float
    seconds_served: float
    ranks: int  # on all nodes together
    threads: int  # of each rank
    device: str
    split: str  # what the ranks shared out
    learning_rate: float  # half of what was asked for where the first try diverged
    peak_bytes: int  # of the rank that needed most
    curve_path: str  # SVG: loss and validation recall by epoch
    num_parameters: int
    collision_rate: float = 0.0  # of the pairs of a user and a negative, how many were likes of theirs (and left out)
    warm: OutputFile | None = None  # what the next night may start from (tasks/warm.py)
    started: str = "cold"  # or: from which night; with the reason where it might have been warm


@dataclass(frozen=True)
class Measured:
    """A mean over users with the 95 % interval of a bootstrap over users."""

    mean: float
    low: float
    high: float


FEWEST_USERS = 30  # fewer make no interval that deserves the name


@dataclass(frozen=True)
class ModelScore:
    """One model on one part of the split: all its users, the full catalogue, items seen before left out."""

    model: str  # lightgcn, popularity, item_knn, ease, graph_filter
    part: str  # validation, test
    num_users: int
    recall: Measured
    ndcg: Measured
    coverage: float  # share of the catalogue that stands in at least one list
    # Metric (models/metrics.PER_USER) -> length of the list -> its value.
    at: dict[str, dict[int, Measured]] = field(default_factory=dict)
    novelty: float = 0.0  # mean -log2 of the share of users who like a listed item
    gini: float = 0.0  # of how often items stand in lists: 0 all alike, 1 one item everywhere
    popular_share: float = 0.0  # share of the lists' rows that are head items (evaluate.head_share)


@dataclass(frozen=True)
class SliceScore:
    """Some of the test users, or of the items they like: the judged fit, and its paired difference to popularity."""

    name: str  # users: new, light, heavy; items: head, tail; segment: its name
    num_users: int
    recall: Measured
    over_popularity: Measured


@dataclass(frozen=True)
class TierScore:
    """One tier of the served lists on validation, by the judged fit (tasks/evaluate/tiers.py says of whom)."""

    tier: str  # graph, fold_in, segment, popular
    events: str  # of fold_in: how many likes a row is made of, 1, 2-4, 5-9, 10+; or met, of events that are no likes
    num_users: int
    num_shortened: int  # of them: people with more likes, of whom only so many were used
    recall: Measured
    ndcg: Measured
    recall_over_popular: Measured  # paired difference to what the served popular list gives to the same people
    ndcg_over_popular: Measured

    @property
    def beats_popular(self) -> bool:
        """Beyond noise."""
        return self.recall_over_popular.low > 0.0


@dataclass(frozen=True)
class Evaluation:
    fingerprint: str
    k: int
    scores: tuple[ModelScore, ...]
    over_popularity: dict[str, Measured]  # metric -> paired difference on test, lightgcn minus popularity
    recall_by_history: dict[str, dict[str, float]]  # model -> {with_history, without_history} on test
    users_by_history: dict[str, int]
    tiers: tuple[TierScore, ...] = ()
    slices: tuple[SliceScore, ...] = ()
    # Rival -> metric -> paired difference on test, the rival minus lightgcn.
    rivals_over: dict[str, dict[str, Measured]] = field(default_factory=dict)

    @property
    def num_test_users(self) -> int:
        return next(score.num_users for score in self.scores if score.part == "test")

    def rivals_ahead(self, metric: str) -> dict[str, Measured]:
        """Rivals that are better than the judged fit on test beyond noise, and by how much."""
        enough = self.num_test_users >= FEWEST_USERS
        return {
            model: by_metric[metric]
            for model, by_metric in self.rivals_over.items()
            if enough and by_metric[metric].low > 0.0
        }

    def not_above_popular(self, tier: str) -> tuple[TierScore, ...]:
        """What a night says aloud of a tier that the model scores, graph or fold_in."""
        return tuple(score for score in self.tiers if score.tier == tier and not score.beats_popular)


@dataclass(frozen=True)
class Part:
    """One finished Parquet file of recommendations on local disk; users of part n sort before those of part n+1."""

    path: str
    rows: int
    users: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Output:
    """A table that is published beside the lists: similar_items, user_embeddings or item_embeddings."""

    name: str
    files: tuple[OutputFile, ...]


@dataclass(frozen=True)
class Traces:
    """What a store holds of one person now, which may be more than a night saw."""

    before: int  # valid events before the night's date
    likes: int  # of them
    later: int  # valid events on that date or after it
    quarantined: int
    in_users: bool  # the users table lists them
    forgotten: bool  # they are kept out for ever (make forget)


@dataclass(frozen=True)
class Recommendations:
    folder: str
    parts: tuple[Part, ...]
    fingerprint: str
    k: int
    users: int  # with a row at least
    rows: int
    rows_by_tier: dict[str, int]
    users_without_a_trained_row: int
    short_lists: int  # people whose allowed catalogue is smaller than k, down to nothing at all
    catalogue: int
    people: int = 0  # everybody who should get a list: users with events, and the users table's
    users_by_tier: dict[str, int] = field(default_factory=dict)  # people by the tier of their first row
    removed_by_rule: dict[str, int] = field(default_factory=dict)  # would-be rows it took (tasks/recommend/rows.py)
    short_by_reason: dict[str, int] = field(default_factory=dict)  # what left fewer than k -> people
    outputs: tuple[Output, ...] = ()  # beside the lists, each where it is asked for


@dataclass(frozen=True)
class MovedItem:
    item_id: str
    before: int  # lists that it stood in
    now: int


@dataclass(frozen=True)
class NightDiff:
    """Tonight's lists beside those that are live (tasks/publish/difference.py), or why they cannot be compared."""

    as_of: date | None  # of the live night; None: there is none
    version: int
    users_before: int
    users_now: int
    same_input: bool  # the same events, so that the same lists are no wonder
    why_not: str = ""  # the live night could not be read
    users_in_both: int = 0
    overlap: float = 0.0  # mean over them: items in both lists, of the longer one's
    overlap_tenths: tuple[int, ...] = ()  # people with an overlap from 0.0, from 0.1, ..., of 1.0
    identical: int = 0  # people whose list is the same, in its order too
    other_tier: int = 0  # people whose list begins with another tier
    items_in: int = 0  # in a list now, and in none before
    items_out: int = 0
    gained: tuple[MovedItem, ...] = ()  # in more lists than before, most first
    lost: tuple[MovedItem, ...] = ()


@dataclass(frozen=True)
class Check:
    gate: str
    passed: bool
    detail: str
    enough_evidence: bool = True  # False: too few test users to answer; then it has passed, and says nothing


@dataclass(frozen=True)
class Verdict:
    passed: bool
    checks: tuple[Check, ...]
    overridden: str = ""  # the gates that were overridden, if any
    override_reason: str = ""


@dataclass(frozen=True)
class Published:
    """Where the night's recommendations are, whoever published them."""

    as_of: date
    version: int
    attempt: str
    run_key: str
    already: bool  # True: this night changed nothing, the same run key had been published before
    commit_uri: str
    latest_uri: str
    files: tuple[str, ...]  # complete URIs
    rows: int
    users: int
    is_latest: bool  # False: a newer date or version is live (a backfill)
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)  # beside the lists: name -> complete URIs


@dataclass(frozen=True)
class LiveNight:
    """What readers get, once a person has moved LATEST."""

    as_of: date
    version: int
    rolled_back_to: str  # whose files these are, as in 2026-11-22 v1; empty: its own
    held: str  # since when, by whom and why readers stay with it; empty: they do not
    created_at: datetime  # of the night that made the lists
    rows: int
    users: int
    files: int
    latest_uri: str


@dataclass(frozen=True)
class GoneFiles:
    """What one attempt at a night had left in the store."""

    as_of: date
    attempt: str
    version: int  # that it was published as; 0: never
    why: str
    files: int
    num_bytes: int


@dataclass(frozen=True)
class Retained:
    """What retention removed, or would."""

    store_uri: str
    applied: bool
    keep_dates: int
    gone: tuple[GoneFiles, ...]
    left_alone: int  # attempts that changed while it was at work: a rollback was quicker, say
    kept: int  # attempts with files
    kept_bytes: int
    ended: int  # attempts that had committed, and whose record now says so
    unknown: tuple[str, ...]  # dates and attempts that nobody can tell whether they may still commit


@dataclass(frozen=True)
class LiveLists:
    """What the live night says before somebody is forgotten; nothing where there is none."""

    settings: IngestConfig  # where its events were, and what their columns are called
    id_type: str  # of users, as its manifest names it; empty: there is no live night
    have_one: tuple[bool, ...]  # for each person asked for, whether they have a list


@dataclass(frozen=True)
class Remains:
    """What the team's own files have of people who are to be forgotten."""

    rows: dict[str, int]  # key of an event or table file -> rows that are theirs; files without any are left out
    unread: dict[str, str]  # key -> why it could not be counted
    met: tuple[int, ...]  # who has a row: places in the list of people that was asked for


@dataclass(frozen=True)
class ForgottenIds:
    """The registry's part of an act of forgetting."""

    had_a_row: int  # people with events; the others are kept out, should they ever come
    forgotten_before: int
    acts: int  # of forgetting in this store, up to now


@dataclass(frozen=True)
class RewrittenDays:
    """Digested days and refused rows after somebody was forgotten."""

    units: int  # that held somebody
    rows: int  # left out, of events and of refused rows
    failed: dict[str, str]  # what could not be rewritten or looked into -> why; everything else was


@dataclass(frozen=True)
class RewrittenNights:
    """Kept nights after somebody was forgotten. Nights that did not hold them have no new version."""

    nights: tuple[date, ...]
    rows: int  # left out, of lists and of what stands beside them
    failed: dict[str, str]  # what could not be rewritten or looked into -> why; everything else was


@dataclass(frozen=True)
class Swept:
    """What was due for removal, each object counted once."""

    removed: int
    removed_bytes: int
    waiting: int  # their grace has not passed
    waiting_bytes: int
    kept: int  # named by a night that was published since: rewritten first, removed by a later sweep
    next_at: datetime | None  # by the store's clock: when the first of those that wait may go


@dataclass(frozen=True)
class Forgotten:
    """What an act of forgetting did and what is left to do. No id stands in it."""

    store_uri: str
    people: int  # asked for; 0: only what earlier acts left to do
    ids: ForgottenIds | None
    remains: Remains | None
    days: RewrittenDays
    nights: RewrittenNights
    swept: Swept
    busy: tuple[str, ...]  # dates that nights on this machine are working on, whose scratch was left alone

    @property
    def failed(self) -> dict[str, str]:
        return self.days.failed | self.nights.failed


@dataclass(frozen=True)
class Compacted:
    """What compacting the registry gave up, or would."""

    store_uri: str
    applied: bool  # never where every row is needed
    epoch: int  # before
    units: int  # digested days of that epoch; 0: no night was there since the last compaction, and nothing is done
    users: int  # rows given out, those of forgotten people too
    users_kept: int
    items: int
    items_kept: int
    due: int  # objects that nothing needs any more and that go once their grace is over


@dataclass(frozen=True)
class StageCost:
    """What a stage took. Kept beside its Ref, not in it: the same night has the same Refs, never the same seconds."""

    stage: str
    seconds: float
    peak_bytes: int  # of this process and all its children together; 0 where the stage was reused
    reused: bool


@dataclass(frozen=True)
class Night:
    """Everything a night found out, published or refused: what its report is made of."""

    as_of: date
    run_key: str
    store_uri: str
    config: NightlyConfig
    interactions: Interactions
    graph: Graph
    fitted: Fitted
    evaluation: Evaluation
    recommendations: Recommendations
    verdict: Verdict
    published: Published | None
    costs: tuple[StageCost, ...]
    tables: Tables | None = None  # audits of before there were any have none
    diff: NightDiff | None = None  # likewise
