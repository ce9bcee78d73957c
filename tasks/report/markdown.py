"""The night as a Markdown artifact: counts, metrics, verdict, where the output is. No user's id stands in it."""

from tasks.contracts import LATEST_KEY, SET_ASIDE, Check, Evaluation, Measured, Night

FILES_NAMED = 20  # of each verdict
MODEL_NAMES = {
    "lightgcn": "LightGCN",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "graph_filter": "graph filter",
}


def to_markdown(night: Night) -> str:
    """What a person reads in the dashboard the next morning."""
    return "\n\n".join(
        [
            text
            for part in (_headline, _where, _change, _rows, _lists, _training, _metrics, _gate, _costs)
            if (text := part(night))
        ]
    )


def _headline(night: Night) -> str:
    """Whether readers have it, and, before anything else, whether it was worth a graph."""
    ahead = night.evaluation.rivals_ahead(night.config.gate.metric) if night.evaluation.rivals_over else {}
    rivals = "".join(
        f"\n\n**{MODEL_NAMES[model]} is ahead of LightGCN beyond noise**, by {_interval(value)} in "
        f"{night.config.gate.metric}@{night.evaluation.k} on test."
        for model, value in ahead.items()
    )
    return _fate(night) + rivals


def _fate(night: Night) -> str:
    if night.published is None:
        fate = "**not published**, publishing failed" if night.verdict.passed else "**refused**, nothing was published"
        return f"# Night of {night.as_of}: {fate}"
    fate = "live" if night.published.is_latest else "published, not live (a newer night is, or one that is held)"
    return f"# Night of {night.as_of}: version {night.published.version}, {fate}"


def _where(night: Night) -> str:
    if night.published is None:
        if night.verdict.passed:  # an error can come after the commit, too
            return f"`{LATEST_KEY}` in `{night.store_uri}` says what is live; run the night again to end what it began."
        return f"The recommendations that were live in `{night.store_uri}` still are."
    lists = night.recommendations
    return (
        f"{lists.rows:,} rows for {lists.users:,} users, {lists.k} items each, in {len(lists.parts)} files. "
        f"Readers open `{night.published.latest_uri}`; the commit is `{night.published.commit_uri}`."
        + "".join(
            f" Beside them: {sum(file.rows for file in output.files):,} rows of {output.name}."
            for output in lists.outputs
        )
    )


def _change(night: Night) -> str:
    """What is different from the live night of before."""
    diff = night.diff
    if diff is None:
        return ""
    if diff.as_of is None:
        return "## Change\n\nThis is the first night: there was none to compare with."
    against = f"## Change\n\nAgainst the night of {diff.as_of}, version {diff.version}"
    if diff.why_not:
        return f"{against}: {diff.why_not}."
    tenths = " | ".join(f"{count:,}" for count in diff.overlap_tenths)
    ends = " | ".join([*(f"from {tenth * 10} %" for tenth in range(len(diff.overlap_tenths) - 1)), "all"])
    moved = [
        f"| {name} | " + (", ".join(f"`{one.item_id}` {one.before:,} to {one.now:,}" for one in items) or "none") + " |"
        for name, items in (("in more lists", diff.gained), ("in fewer lists", diff.lost))
    ]
    return (
        f"{against}, which was live: {diff.users_now:,} people with a list, {diff.users_before:,} before. Of "
        f"{diff.users_in_both:,} in both the lists share {diff.overlap:.1%} of their items on average, "
        f"{diff.identical:,} are the same, {diff.other_tier:,} begin with another tier. "
        f"{diff.items_in:,} items came into a list, {diff.items_out:,} went out of all.\n\n"
        f"| share of a list that stayed | {ends} |\n|---|"
        + "---:|" * len(diff.overlap_tenths)
        + f"\n| people | {tenths} |\n\n| items | |\n|---|---|\n"
        + "\n".join(moved)
    )


def _rows(night: Night) -> str:
    found, graph = night.interactions, night.graph
    lines = [
        ("rows in", found.rows_in),
        *((f"quarantined: {rule}", count) for rule, count in found.quarantined.items() if count),
        *((words, found.set_aside[why]) for why, words in SET_ASIDE.items() if found.set_aside.get(why)),
        ("seen, below the threshold", found.below_threshold),
        ("**likes**", found.kept),
        ("likes that train the judged fit", graph.num_train),
        ("likes that choose its epochs", graph.num_validation),
        ("likes that judge it", graph.num_test),
    ]
    table = "\n".join(f"| {name} | {count:,} |" for name, count in lines)
    return (
        f"## Rows\n\n| | rows |\n|---|---:|\n{table}\n\n{graph.num_users:,} users, {graph.num_items:,} items. "
        f"Cold, with likes to find and none to learn from: {graph.cold_users:,} users, {graph.cold_items:,} items."
        + _left_out(night)
        + _tables(night)
        + _files(night)
    )


def _left_out(night: Night) -> str:
    served = night.graph.left_out.get("all", {})
    if not served.get("likes"):
        return ""
    return (
        f" Kept out of the served graph: {served['likes']:,} likes, {served['over_cap']:,} of them beyond the latest "
        f"{night.config.graph.likes_per_user_at_most:,} of {served['capped_users']:,} users, and all of "
        f"{served['users']:,} users and {served['items']:,} items below the core; they stay seen and popular."
    )


def _tables(night: Night) -> str:
    if night.tables is None or not night.tables.rows:
        return ""
    rows = ", ".join(f"{name} {count:,}" for name, count in night.tables.rows.items())
    ignored = ", ".join(f"{why} {count:,}" for why, count in night.tables.ignored.items())
    return f" Tables: {rows} rows." + (f" Rows left out of them: {ignored}." if ignored else "")


def _files(night: Night) -> str:
    """Every event file's verdict, and the names of those that are not simply accepted."""
    found = night.interactions.inspection
    parts = [f"{found.accepted + len(found.widened):,} accepted"]
    if found.widened:
        parts.append(f"{len(found.widened):,} of them in narrower types, which were widened")
    if found.set_aside:
        parts.append(f"{len(found.set_aside):,} set aside")
    named = [f"\n- `{key}`: widened, {', '.join(what)}" for key, what in list(found.widened.items())[:FILES_NAMED]]
    named += [f"\n- `{key}`: set aside, {why}" for key, why in list(found.set_aside.items())[:FILES_NAMED]]
    odd = f" Overridden: {night.interactions.odd_days}." if night.interactions.odd_days else ""
    return f" Event files: {', '.join(parts)}.{odd}" + (f"\n{''.join(named)}" if named else "")


def _lists(night: Night) -> str:
    """Where the lists' rows come from, what the rules took, and why a list is short."""
    lists = night.recommendations
    tiers = "\n".join(
        f"| {tier} | {lists.users_by_tier.get(tier, 0):,} | {count:,} |" for tier, count in lists.rows_by_tier.items()
    )
    taken = {rule: count for rule, count in lists.removed_by_rule.items() if count}
    rules = "\n".join(
        f"| {rule} | {count:,} | {count / max(1, lists.people * lists.k):.1%} |" for rule, count in taken.items()
    )
    short = ", ".join(f"{reason} {count:,}" for reason, count in lists.short_by_reason.items())
    return (
        f"## Lists\n\n{lists.people:,} people, {lists.users_without_a_trained_row:,} of them without a trained row.\n\n"
        f"| tier | people whose list begins with it | rows |\n|---|---:|---:|\n{tiers}\n\n"
        f"What the rules took, each item under the first rule that does, and others took their places. `seen`: of "
        f"the {lists.k} that the model puts first; the others: of the {lists.k} that `seen` leaves to each person.\n\n"
        f"| rule | items | share |\n|---|---:|---:|\n{rules}\n\n"
        + (
            f"{lists.short_lists:,} lists are shorter than {lists.k}, because of: {short}."
            if lists.short_lists
            else f"No list is shorter than {lists.k}."
        )
    )


def _training(night: Night) -> str:
    fitted = night.fitted
    ranks = f"{fitted.ranks} ranks ({fitted.split})" if fitted.ranks > 1 else "one rank"
    rate = "" if fitted.learning_rate == night.config.train.learning_rate else ", half the rate after a first try"
    return (
        f"## Training\n\n{fitted.num_parameters:,} numbers on {ranks}, {fitted.device}, learning rate "
        f"{fitted.learning_rate:g}{rate}; started {fitted.started}. Epoch {fitted.epochs} was best on "
        f"validation (recall {fitted.best_validation_recall:.4f}). {fitted.seconds_judged:.1f} s for the judged fit, "
        f"{fitted.seconds_served:.1f} s for the served one, {fitted.peak_bytes / 2**20:,.0f} MiB at its peak. "
        f"{fitted.collision_rate:.2%} of the negatives were likes of their user, and left out. "
        f"The curve lies beside the audit: `_meta/audits/{night.as_of}/*.svg`."
    )


def _metrics(night: Night) -> str:
    evaluation = night.evaluation
    lines = [
        f"| {_bold_if_ours(score.model)} | {score.part} | {score.num_users:,} | {_interval(score.recall)} "
        f"| {_interval(score.ndcg)} | {score.coverage:.1%} |"
        for score in evaluation.scores
    ]
    history = evaluation.users_by_history
    by_history = "; ".join(
        f"{_bold_if_ours(name)} {values['with_history']:.4f} with, {values['without_history']:.4f} without"
        for name, values in evaluation.recall_by_history.items()
    )
    header = f"| model | part | users | recall@{evaluation.k} (95 %) | ndcg@{evaluation.k} (95 %) | coverage |"
    return (
        f"## Quality ({night.graph.split})\n\n{header}\n|---|---|---:|---:|---:|---:|\n"
        + "\n".join(lines)
        + f"\n\nTest users: {history['with_history']:,} with a history, {history['without_history']:,} without. "
        f"Their recall: {by_history}. The judged fit has not seen validation or test; the served one has the same "
        f"{night.fitted.epochs} epochs on all likes."
        + _beyond_one_number(evaluation)
        + _slices(evaluation)
        + tiers_in_words(evaluation)
    )


def _beyond_one_number(evaluation: Evaluation) -> str:
    """Every metric at every length on test, and what the lists of each model are like."""
    scores = [score for score in evaluation.scores if score.part == "test" and score.at]
    if not scores:
        return ""
    lengths = sorted(scores[0].at["recall"])
    rows = [
        f"| {_bold_if_ours(score.model)} | {metric} | "
        + " | ".join(_interval(score.at[metric][length]) for length in lengths)
        + " |"
        for metric in scores[0].at
        for score in scores
    ]
    lists = [
        f"| {_bold_if_ours(score.model)} | {score.coverage:.1%} | {score.novelty:.2f} | {score.gini:.3f} "
        f"| {score.popular_share:.1%} |"
        for score in scores
    ]
    return (
        "\n\n### On test, at several lengths (95 %)\n\n| model | metric | "
        + " | ".join(f"@{length}" for length in lengths)
        + " |\n|---|---|"
        + "---:|" * len(lengths)
        + "\n"
        + "\n".join(rows)
        + f"\n\nWhat their lists of {evaluation.k} are like. Novelty: mean bits, -log2 of the share of users who like "
        "an item. Gini: how unequally items are shown, 0 all alike. Head: the most liked items, with half of all likes "
        "unless evaluate.head_share says else.\n\n| model | coverage | novelty | gini | rows of head items |\n"
        "|---|---:|---:|---:|---:|\n" + "\n".join(lists)
    )


def _slices(evaluation: Evaluation) -> str:
    if not evaluation.slices:
        return ""
    rows = [
        f"| {score.name} | {score.num_users:,} | {_interval(score.recall)} | {_difference(score.over_popularity)} |"
        for score in evaluation.slices
    ]
    return (
        "\n\n### Whom it serves\n\nLightGCN on test. New users have no like before the cut; light ones up to the "
        "median of the others', heavy ones more. Head and tail: of the liked items, these alone.\n\n"
        f"| | users | recall@{evaluation.k} (95 %) | over popularity |\n|---|---:|---:|---:|\n" + "\n".join(rows)
    )


def tiers_in_words(evaluation: Evaluation) -> str:
    """What each tier is worth beside popular for the same people, and where the model's are worth nothing."""
    if not evaluation.tiers:
        return ""
    lines = [
        f"| {score.tier}{f', {score.events}' if score.events else ''} | {score.num_users:,} "
        f"| {score.num_shortened or ''} | {_interval(score.recall)} | {_difference(score.recall_over_popular)} "
        f"| {score.ndcg.mean:.4f} | {_difference(score.ndcg_over_popular)} |"
        for score in evaluation.tiers
    ]
    header = "| tier, events | users | shortened | recall (95 %) | over popular | ndcg | over popular |"
    return (
        "\n\n### Tiers on validation\n\nfold_in: a night serves by it whom `met` is about, people with events and not "
        "one like; the served fit is trained on all likes, so nobody else is without a row. The rows by number of "
        "events show what the method is worth: people with a row, taken as if they had none, by how many likes it is "
        "made of; shortened are those with more likes, of whom only so many were used. segment: everybody whose "
        "segment has likes. Popular is the list as served, where recent likes count more; the models above and the "
        "gate stand beside popularity, which counts all likes alike.\n\n"
        f"{header}\n|---|---:|---:|---:|---:|---:|---:|\n" + "\n".join(lines) + f"\n\n{_beside_popular(evaluation)}"
    )


def _beside_popular(evaluation: Evaluation) -> str:
    sentences = []
    for tier, whom in (("graph", "people with likes"), ("fold_in", "people with any number of events measured")):
        failing = evaluation.not_above_popular(tier)
        if tier == "graph" and failing:
            sentences.append("**graph does not beat popular beyond noise.**")
        elif failing:
            events = ", ".join(score.events for score in failing)
            sentences.append(f"**fold_in does not beat popular beyond noise for people with these events: {events}.**")
        elif any(score.tier == tier for score in evaluation.tiers):
            sentences.append(f"{tier} beats popular for {whom}.")
    return " ".join(sentences)


def _bold_if_ours(model: str) -> str:
    name = MODEL_NAMES[model]
    return f"**{name}**" if model == "lightgcn" else name


def _difference(value: Measured) -> str:
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def _interval(value: Measured) -> str:
    return f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def _gate(night: Night) -> str:
    lines = [f"| {c.gate} | {_answer(c)} | {c.detail} |" for c in night.verdict.checks]
    text = "## Gate\n\n| check | | found |\n|---|---|---|\n" + "\n".join(lines)
    if night.verdict.overridden:
        text += f"\n\nOverridden: {night.verdict.overridden}, because: {night.verdict.override_reason}"
    return text


def _answer(check: Check) -> str:
    if not check.passed:
        return "**refused**"
    return "passed" if check.enough_evidence else "not enough evidence"


def _costs(night: Night) -> str:
    lines = [
        f"| {c.stage} | {'reused' if c.reused else f'{c.seconds:.1f} s'} | {c.peak_bytes / 2**20:,.0f} MiB |"
        for c in night.costs
    ]
    return "## Stages\n\n| stage | time | peak memory |\n|---|---:|---:|\n" + "\n".join(lines)
