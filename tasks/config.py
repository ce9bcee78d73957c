"""What a person may set: one frozen model a stage, with bounds and a line of help for each field.

These models are the form in the Prefect dashboard. Places and credentials are not here on purpose: they come from
the deployment's environment (tasks/run.py), so that nobody who may start a run can point it somewhere else.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _as_mapping(value: object) -> object:
    """A mapping as it is typed on a command line, where quotes are scarce: JSON, or name:value,name:value."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{") and '"' in text:
        return json.loads(text)
    pairs = [pair.partition(":") for pair in text.strip("{}").split(",") if pair.strip()]
    return {name.strip(): what.strip() for name, _, what in pairs}


def _as_list(value: object) -> object:
    """Likewise: JSON, or values between commas."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.strip().startswith("[") else [part.strip() for part in value.split(",")]


def _as_names(value: object) -> object:
    """Likewise; none is no name."""
    return () if value == "none" else _as_list(value)


_ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_EventType = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Weight = Annotated[float, Field(ge=0.0, le=1e6)]
_ListLength = Annotated[int, Field(ge=1, le=1000)]
# No name begins with _ or a dot: what does holds control files, and is no event file anywhere here.
_Prefix = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9=-][\w.=-]*(/[A-Za-z0-9=-][\w.=-]*)*/?$", max_length=256)
]
# Folders of a store that have another meaning (README, "What goes in" and "What comes out").
OTHER_FOLDERS = frozenset(
    ["items", "users", "blocked", "segments", "recs", "outputs", "days", "quarantine", "registry", "models"]
)


class ColumnNames(_Settings):
    """What a team's own table calls the columns that a night reads."""

    user_id: _ColumnName = Field("user_id", description="Whose event it is.")
    item_id: _ColumnName = Field("item_id", description="What it is about.")
    rating: _ColumnName = Field("rating", description="A number; read where ratings decide what a like is.")
    timestamp: _ColumnName = Field("timestamp", description="When: a timestamp, or seconds since 1970, UTC.")
    event_type: _ColumnName = Field("event_type", description="What kind; read where there are event weights.")

    @model_validator(mode="after")
    def _no_column_is_two(self) -> "ColumnNames":
        names = list(self.model_dump().values())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the column {twice[0]!r} is named for two things; each needs a column of its own")
        return self


class IngestConfig(_Settings):
    model_config = ConfigDict(title="Events")

    prefixes: Annotated[tuple[_Prefix, ...], BeforeValidator(_as_list)] = Field(
        ("events/",),
        min_length=1,
        max_length=32,
        description="Folders of the store that hold event files, at any depth. Where keys carry a day (dt=2026-11-21, "
        "date= or day=), a day is a unit; else each file is one.",
    )
    columns: Annotated[ColumnNames, BeforeValidator(_as_mapping)] = Field(
        ColumnNames(),
        description="What the table calls its columns, such as user_id:member,timestamp:happened_at. A name that is "
        "not given stays what it is.",
    )
    window_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Only events of the last so many days before the night's date are used; of keys with a day only "
        "those days are read, and one more on either side, for what came in late. None: all.",
    )
    event_weights: Annotated[dict[_EventType, _Weight], BeforeValidator(_as_mapping)] = Field(
        {},
        max_length=64,
        description="Weight of each event type, such as view:0.1,purchase:1. A pair of user and item is a like where "
        "the weights of its events add up to ingest.like_threshold. Empty: events have no types.",
    )
    weight_half_life_days: float | None = Field(
        None,
        gt=0.0,
        le=36_500.0,
        description="With event weights, an event that is so many days older counts half. None: age does not matter.",
    )
    like_threshold: float | None = Field(
        4.0,
        title="Like threshold",
        description="Ratings of at least this value are likes; with event weights, pairs of at least this strength. "
        "None: the source has no ratings, every event is a like.",
        ge=-1e6,
        le=1e6,
    )
    quarantine_share_at_most: float = Field(
        0.005,
        ge=0.0,
        le=1.0,
        description="Rows that break a rule are set aside in quarantine/; where they reach this share of all rows, the "
        "night stops.",
    )
    max_bad_files: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Up to so many event files that cannot be read are set aside, by name in the report, and the night "
        "goes on with the others. 0: one ends the night.",
    )
    bot_events_per_day: int = Field(
        50_000,
        ge=1,
        le=1_000_000_000,
        description="Events of a user with more than so many on one day (UTC) are set aside for that day as a bot's. "
        "Counted among what is digested together: a day's files of one prefix, or one file where keys carry no day.",
    )
    memory_mib: int = Field(
        3072,
        ge=256,
        le=1 << 20,
        description="Memory that reading, sorting and merging events is laid out for.",
    )

    ready: Literal["now", "success", "quiet"] = Field(
        "now",
        description="When the newest day counts as all there. now: always. success: a _SUCCESS or manifest lies beside "
        "it. quiet: its newest file is ingest.quiet_minutes old.",
    )
    quiet_minutes: int = Field(
        15, ge=1, le=10_080, description="With ready=quiet: minutes without a change after which a day is all there."
    )
    wait_minutes: int = Field(
        0,
        ge=0,
        le=10_080,
        description="Minutes for which a late day is waited for at most; then the night ends as InputIncomplete.",
    )
    volume_override: Literal["none", "accept"] = Field(
        "none", description="Go on although a day has no rows, or far fewer or more than the days before it."
    )
    volume_override_reason: str = Field(
        "", max_length=500, description="Who overrides, and why. Needed with an override; stands in the manifest."
    )

    @field_validator("prefixes")
    @classmethod
    def _prefixes_are_folders_of_events(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        folders = [prefix.rstrip("/") + "/" for prefix in prefixes]
        for folder in folders:
            name = folder.split("/", 1)[0]
            if name in OTHER_FOLDERS:
                raise ValueError(f"{folder} lies in {name}/, which holds something else in a store")
            if any(other != folder and folder.startswith(other) for other in folders) or folders.count(folder) > 1:
                raise ValueError(f"{folder} lies within another of the prefixes: its files would be read twice")
        return tuple(folders)

    @model_validator(mode="after")
    def _a_half_life_has_weights(self) -> "IngestConfig":
        if self.weight_half_life_days is not None and not self.event_weights:
            raise ValueError("ingest.weight_half_life_days needs ingest.event_weights: without them nothing is weighed")
        return self

    @model_validator(mode="after")
    def _weights_have_a_threshold_of_their_own(self) -> "IngestConfig":
        if self.event_weights and "like_threshold" not in self.model_fields_set:
            raise ValueError(
                "ingest.event_weights needs ingest.like_threshold: the strength from which on a pair is a like (the "
                f"default of {self.like_threshold:g} is meant for ratings, and the heaviest event here weighs "
                f"{max(self.event_weights.values()):g}); none: any event with a weight is one"
            )
        return self

    @model_validator(mode="after")
    def _an_override_of_volume_has_a_reason(self) -> "IngestConfig":
        if self.volume_override != "none" and len(self.volume_override_reason.strip()) < 5:
            raise ValueError("ingest.volume_override needs ingest.volume_override_reason: who overrides, and why")
        return self

    @property
    def event_types(self) -> tuple[str, ...]:
        """Sorted: an event's kind is its type's place here. Empty where events have no types."""
        return tuple(sorted(self.event_weights))

    @property
    def has_rating(self) -> bool:
        """Whether ratings decide what a like is."""
        return self.like_threshold is not None and not self.event_weights


class GraphConfig(_Settings):
    model_config = ConfigDict(title="Graph and split")

    split: Literal["global_time", "per_user_time"] = Field(
        "global_time",
        description="global_time: one cut in time for everybody, as in production. "
        "per_user_time: the last part of each user's likes, so that every user with a history is judged.",
    )
    validation_share: float = Field(
        0.1, ge=0.01, le=0.4, description="Share of the likes that choose the number of epochs."
    )
    test_share: float = Field(0.1, ge=0.01, le=0.4, description="Share of the likes that judge the fit, read once.")
    user_core: int = Field(
        1,
        ge=1,
        le=1_000,
        description="Least likes of a user in the graph. Who has fewer gets a list by fold-in, from their events.",
    )
    item_core: int = Field(
        1,
        ge=1,
        le=1_000,
        description="Least likes of an item in the graph. Others are recommended by the popular list alone.",
    )
    likes_per_user_at_most: int = Field(
        5_000,
        ge=10,
        le=10_000_000,
        description="A user's latest likes in the graph; what is older stays seen and popular.",
    )


class TrainConfig(_Settings):
    model_config = ConfigDict(title="Training")

    ranks: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Training processes on this machine. None: one for each GPU, or one where there is none.",
    )
    nodes: int = Field(1, ge=1, le=64, description="Machines that train together, each with so many ranks.")
    rdzv_endpoint: str = Field(
        "",
        pattern=r"^([A-Za-z0-9.-]+:[0-9]{1,5})?$",
        max_length=260,
        description="HOST:PORT where the machines meet; needed with several nodes, and allowed by the deployment.",
    )
    split: Literal["auto", "data", "columns", "rows"] = Field(
        "auto",
        description="What the ranks share out: the batch, the table's columns, or the nodes. auto: the fastest that "
        "fits, by counted memory and traffic.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of each rank. None: the machine's cores, shared out among the ranks.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPUs where there are any, else the CPU."
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="tf32: faster products on GPUs that have it. bfloat16: rows are gathered and scored in 16 bits.",
    )
    loss: Literal["softmax", "bpr"] = Field(
        "softmax", description="softmax: likes against many shared items. bpr: the paper's pairs, for comparison."
    )
    width: int = Field(128, ge=8, le=1024, description="Numbers in each user's and each item's embedding.")
    layers: int = Field(2, ge=0, le=6, description="Propagation steps over the graph; the embedding is their mean.")
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=1.0,
        description="Scores are cosine / temperature before the softmax. None: 0.15 where at least 0.3 % of all "
        "pairs are likes, else 0.1.",
    )
    popularity_bias: float = Field(
        0.7, ge=0.0, le=2.0, description="Weight of the item's log popularity in the score; 0 turns it off."
    )
    negatives: int = Field(8192, ge=1, le=65536, description="Items drawn as negatives in each step, shared by all.")
    batches_per_epoch: int = Field(
        8, ge=1, le=10_000, description="Steps in one pass over the users; each step propagates once."
    )
    max_epochs: int = Field(20, ge=1, le=1000, description="Passes at most; validation recall chooses how many.")
    patience: int = Field(3, ge=1, le=100, description="Validations without a new best recall before training stops.")
    validate_every: int = Field(2, ge=1, le=100, description="Epochs between two validations.")
    learning_rate: float = Field(0.01, gt=0.0, le=1.0, description="Adam's step size at the start; it falls to zero.")
    warm_start: bool = Field(
        False,
        description="Start from the tables that the newest published night of an earlier date left (graph.split "
        "global_time only), and leave some for the next. A night starts cold where they do not fit, and says why.",
    )
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="Pull of all embeddings towards zero.")
    seed: int = Field(
        2020,
        ge=0,
        le=2**31 - 1,
        description="The same seed, inputs, ranks and threads give the same bytes on the same kind of CPU.",
    )
    silence_s: int = Field(60, ge=5, le=3600, description="A rank silent for so many seconds is taken for dead.")
    deadline_s: int = Field(
        21_600, ge=10, le=604_800, description="Seconds after which a training that has not ended is given up."
    )
    relaunches: int = Field(3, ge=0, le=3, description="Fresh launches after a lost rank, from the last checkpoint.")
    checkpoint_s: int = Field(30, ge=0, le=86_400, description="Seconds between two checkpoints, at ends of epochs.")

    @model_validator(mode="after")
    def _nodes_know_where_to_meet(self) -> "TrainConfig":
        if self.nodes > 1 and not (self.rdzv_endpoint and self.ranks):
            raise ValueError("train.nodes above 1 needs train.rdzv_endpoint (HOST:PORT) and train.ranks (of each node)")
        return self


class EvaluateConfig(_Settings):
    model_config = ConfigDict(title="Evaluation")

    k: int = Field(20, ge=1, le=1000, description="Recall@k and NDCG@k, by which the gate decides.")
    also_at: Annotated[tuple[_ListLength, ...], BeforeValidator(_as_list)] = Field(
        (5, 10, 50), max_length=8, description="Other lengths of a list that the report says what it is worth at."
    )
    head_share: float = Field(
        0.5, gt=0.0, lt=1.0, description="The most liked items that together have this share of all likes are the head."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of the users for 95 % intervals.")
    knn_neighbours: int = Field(200, ge=1, le=5000, description="Neighbours an item keeps in the item-kNN rival.")
    knn_shrink: float = Field(10.0, ge=0.0, le=1e4, description="Shrinks similarities that rest on few users.")
    ease_items_at_most: int = Field(
        3000,
        ge=0,
        le=20_000,
        description="The EASE rival is fitted up to so many items: its time grows with their cube.",
    )
    ease_regularisation: float = Field(300.0, gt=0.0, le=1e6, description="Keeps EASE's item weights small.")
    filter_likes_at_most: int = Field(
        2_000_000,
        ge=0,
        le=100_000_000,
        description="The graph filter rival is run up to so many likes: scoring reads them all for each user.",
    )
    filter_width: int = Field(256, ge=1, le=1024, description="Smoothest directions of the graph in the filter rival.")
    filter_low_pass: float = Field(0.3, ge=0.0, le=10.0, description="Their weight beside what near items say.")


class RecommendConfig(_Settings):
    model_config = ConfigDict(title="Recommendations")

    k: int = Field(20, ge=1, le=1000, description="Items for every user.")
    ranks: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Processes on this machine that share out the shards. None: one, the night's own. The bytes are "
        "the same.",
    )
    users_per_shard: int = Field(
        50_000,
        ge=100,
        le=10_000_000,
        description="Users in one Parquet file, written once and kept by a rerun; fewer where memory_mib says so.",
    )
    memory_mib: int = Field(
        2048,
        ge=640,
        le=1_048_576,
        description="Memory of each process that recommends, in MiB at most, on top of what the night's own process "
        "holds before. Shards and blocks are cut so that it is kept.",
    )

    seen_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="What somebody met within so many days is not recommended to them. None: whatever they ever met.",
    )
    at_most_per_category: int | None = Field(
        None, ge=1, le=1000, description="Items of one category in a list, by the categories of the items table."
    )
    min_item_age_days: int | None = Field(
        None,
        ge=0,
        le=36_500,
        description="Younger items are not recommended. An item is born when the items table says, else with its "
        "first event.",
    )
    max_item_age_days: int | None = Field(None, ge=0, le=36_500, description="Older items are not recommended.")
    popular_half_life_days: float | None = Field(
        None,
        ge=0.0,
        le=36_500.0,
        description="For what is popular a like that is so many days older counts half; 0: all count the same. None: "
        "as long as the newest 5,000 likes took to come in, a week at least.",
    )
    reasons: int = Field(3, ge=0, le=3, description="Reasons for each recommended item, at most.")

    @model_validator(mode="after")
    def _some_age_is_allowed(self) -> "RecommendConfig":
        youngest, oldest = self.min_item_age_days, self.max_item_age_days
        if youngest is not None and oldest is not None and youngest > oldest:
            raise ValueError(
                "recommend.min_item_age_days is above recommend.max_item_age_days: no item has such an age"
            )
        return self

    similar_items: int = Field(
        10,
        ge=0,
        le=1000,
        description="Nearest items published for each item, beside the lists; the time grows with the square of the "
        "items. 0: none.",
    )
    embeddings: bool = Field(
        False,
        description="Publish the served vectors of users and items, too. They are large, and vectors of both tell what "
        "people like.",
    )


class GateConfig(_Settings):
    model_config = ConfigDict(title="Gate")

    metric: Literal["recall", "ndcg"] = Field(
        "recall", description="A fit whose test value is below popularity's beyond noise is refused."
    )
    at_least: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="A fit whose test value is below this beyond noise is refused. None: no floor.",
    )
    slice_loss_at_most: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Share of popularity's recall that light or heavy users, a segment, or items of the tail may lose "
        "beyond noise.",
    )
    rivals: Literal["warn", "refuse"] = Field(
        "warn",
        description="A rival that is ahead of LightGCN beyond noise is said first thing. warn: LightGCN is published "
        "all the same, unless it is below popularity. refuse: nothing is.",
    )
    overlap_at_least: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="Least share of their list that people keep from the live night, on average. 0: any.",
    )
    users_drop_at_most: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the live night's people that may be without a list tonight."
    )
    override: Annotated[
        tuple[Literal["popularity", "floor", "slices", "rivals", "change"], ...], BeforeValidator(_as_names)
    ] = Field(
        (),
        description="Publish although these refuse. Checks of lists and of the served model cannot be overridden.",
    )
    override_reason: str = Field(
        "", max_length=500, description="Who overrides, and why. Needed with an override; stands in the manifest."
    )

    @model_validator(mode="after")
    def _an_override_has_a_reason(self) -> "GateConfig":
        if self.override and len(self.override_reason.strip()) < 5:
            raise ValueError("gate.override needs gate.override_reason: who overrides, and why")
        return self


class NightlyConfig(_Settings):
    """Everything a person may set about a night."""

    model_config = ConfigDict(title="Nightgraph")

    ingest: IngestConfig = Field(IngestConfig(), description="Which events are likes.")
    graph: GraphConfig = Field(GraphConfig(), description="How the likes are split in time.")
    train: TrainConfig = Field(TrainConfig(), description="LightGCN and how it is trained.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="How the judged fit is measured.")
    recommend: RecommendConfig = Field(RecommendConfig(), description="What everybody gets.")
    gate: GateConfig = Field(GateConfig(), description="What keeps a bad night from going live.")
