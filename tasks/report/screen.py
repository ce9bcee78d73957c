"""What a night started by hand looks like: lines while it works, a screen at its end."""

import logging
import time

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.contracts import SET_ASIDE, TIERS, Measured, Night, Published, Recommendations
from tasks.errors import NightError
from tasks.report.markdown import MODEL_NAMES
from tasks.report.people import Person, Reason

FEW_USERS = 30  # an interval over fewer is wider than any difference between models
MANY_QUARANTINED = 0.1  # a larger share is hardly noise: something upstream is likely broken
LONGEST_TITLE = 120
FILES_SHOWN = 3


class Narrator(logging.Handler):
    """Every line the rooms log, with the seconds since the start and the room's name."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.started = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        room = record.name.removeprefix("nightgraph.")
        line = Text.assemble(
            (f"{time.monotonic() - self.started:6.1f} s  ", "dim"), (f"{room:<10}", "cyan"), record.getMessage()
        )
        if record.levelno >= logging.WARNING:
            line.stylize("yellow")
        self.console.print(line, soft_wrap=True)


def show(console: Console, screen: RenderableType) -> None:
    """Lines that are to be copied, URIs and commands, run past the edge rather than break in the middle."""
    console.print(screen, crop=False)


def night_screen(night: Night, people: list[Person], next_steps: list[tuple[str, str]]) -> Group:
    """The rows' way, the metrics beside the baselines, the people, the files, and what to type next."""
    published = night.published
    assert published is not None
    title = Text.assemble(
        ("Nightgraph  ", "bold"), f"night of {night.as_of}, version {published.version}, ", (_fate(published), "green")
    )
    return Group(
        "",
        Panel(title, border_style="cyan"),
        Columns([_rows_table(night), _stages_table(night)], padding=(0, 3)),
        *_quarantine_warning(night),
        *_set_aside_warning(night),
        "",
        _metrics_table(night),
        _remark(night),
        "",
        *[_person_panel(person) for person in people],
        _files(published),
        _next(next_steps),
    )


def already_screen(published: Published, next_steps: list[tuple[str, str]]) -> Group:
    """Nothing new was published, and why."""
    text = Text.assemble(
        "The night of ",
        (str(published.as_of), "bold"),
        f" was published before as version {published.version}, from the same events, settings and code. ",
        f"Nothing new was published; that version is {_fate(published)}.",
    )
    return Group("", Panel(text, border_style="cyan"), _files(published), _next(next_steps))


def published_screen(published: Published, trouble: str, next_steps: list[tuple[str, str]]) -> Group:
    """What was published, where the rest of the night cannot be shown."""
    text = Text.assemble(
        ("Nightgraph  ", "bold"), f"night of {published.as_of}, version {published.version}, ", _fate(published), "\n"
    )
    text.append(f"{published.rows:,} recommendations for {published.users:,} users.")
    warning = Text(f"The rest of this screen cannot be shown: {trouble}", "yellow")
    return Group("", Panel(text, border_style="cyan"), warning, "", _files(published), _next(next_steps))


def error_panel(error: BaseException) -> Panel:
    """A named error says what to do; anything else is a fault of ours."""
    if isinstance(error, NightError):
        return Panel(Text(str(error)), title=f"[bold]{type(error).__name__}[/]", border_style="red")
    text = (
        f"{type(error).__name__}: {error}\nThis error has no name, so it is a fault of the job. Whether anything was "
        "published, _meta/LATEST.json in the store says; so does the same night run again: it goes on where it "
        "stopped, or finds itself published."
    )
    return Panel(Text(text), title="[bold]Internal[/]", border_style="red")


def _fate(published: Published) -> str:
    return "live" if published.is_latest else "not live: a newer night is, or one that is held"


def _rows_table(night: Night) -> Table:
    found, graph, lists = night.interactions, night.graph, night.recommendations
    table = Table(title="The rows' way", title_justify="left", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    for count, name in [
        (found.rows_in, "events read"),
        *((-count, f"quarantined: {rule}") for rule, count in found.quarantined.items() if count),
        *((-found.set_aside[why], words) for why, words in SET_ASIDE.items() if found.set_aside.get(why)),
        (-found.below_threshold, "seen, not liked"),
        (found.kept, f"likes of {graph.num_users:,} users x {graph.num_items:,} items"),
        (graph.num_train, "train the judged fit"),
        (graph.num_validation, "choose its epochs"),
        (graph.num_test, "judge it"),
        (lists.rows, f"recommendations, {'up to ' if lists.short_lists else ''}{lists.k} for each user"),
        *((lists.rows_by_tier[tier], f"of them of tier {tier}") for tier in TIERS if lists.rows_by_tier.get(tier)),
        *([(lists.short_lists, f"lists are shorter: {_why_short(lists)}")] if lists.short_lists else []),
    ]:
        style = "dim" if count < 0 else ""
        table.add_row(f"{count:,}", name, style=style)
    return table


def _why_short(lists: Recommendations) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in lists.short_by_reason.items())


def _quarantine_warning(night: Night) -> list[Text]:
    found = night.interactions
    faulty = found.quarantined
    count = sum(faulty.values())
    if count <= MANY_QUARANTINED * found.rows_in:
        return []
    worst = max(faulty, key=lambda rule: faulty[rule])
    text = f"{count:,} of {found.rows_in:,} events ({count / found.rows_in:.0%}) are quarantined, most by {worst}: "
    return [Text(text + "look at what writes them before you trust these recommendations.", "yellow")]


def _set_aside_warning(night: Night) -> list[Text]:
    aside = night.interactions.inspection.set_aside
    if not aside:
        return []
    named = "; ".join(f"{key}: {_literal(why)}" for key, why in list(aside.items())[:FILES_SHOWN])
    more = f"; and {len(aside) - FILES_SHOWN:,} more" if len(aside) > FILES_SHOWN else ""
    files = "1 event file is" if len(aside) == 1 else f"{len(aside):,} event files are"
    return [Text(f"{files} set aside, and no event of theirs counts: {named}{more}.", "yellow")]


def _stages_table(night: Night) -> Table:
    table = Table(title="Stages", title_justify="left", box=None)
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("peak MiB", justify="right")
    for cost in night.costs:
        seconds = "reused" if cost.reused else f"{cost.seconds:.1f}"
        table.add_row(cost.stage, seconds, "" if cost.reused else f"{cost.peak_bytes / 2**20:,.0f}")
    return table


def _metrics_table(night: Night) -> Table:
    evaluation = night.evaluation
    table = Table(
        title=f"How good: test users of the {night.graph.split} split, full catalogue, 95 % intervals",
        title_justify="left",
        box=None,
    )
    for name in ("", f"recall@{evaluation.k}", f"ndcg@{evaluation.k}", "coverage", "users"):
        table.add_column(name, justify="right" if name else "left")
    for score in evaluation.scores:
        if score.part == "test":
            table.add_row(
                MODEL_NAMES[score.model],
                _interval(score.recall),
                _interval(score.ndcg),
                f"{score.coverage:.0%}",
                f"{score.num_users:,}",
                style="bold" if score.model == "lightgcn" else "",
            )
    return table


def _interval(value: Measured) -> str:
    return f"{value.mean:.4f} ({value.low:.4f}-{value.high:.4f})"


def _remark(night: Night) -> Text:
    """The comparison in words, also where it is not flattering. A rival within our interval is level, not beaten."""
    recall = {score.model: score.recall for score in night.evaluation.scores if score.part == "test"}
    ours = recall.pop("lightgcn")
    words = []
    for model, theirs in recall.items():
        relation = "level with" if ours.low <= theirs.mean <= ours.high else "behind"
        if theirs.mean < ours.low:
            relation = "ahead of"
        words.append(f"{relation} {MODEL_NAMES[model]}")
    behind = any(word.startswith("behind") for word in words)
    users = night.graph.num_test_users
    if users < FEW_USERS:
        return Text(f"Only {users} users could be tested: these figures say next to nothing.", "yellow")
    return Text("LightGCN is " + " and ".join(words) + " on test recall.", "yellow" if behind else "green")


def _person_panel(person: Person) -> Panel:
    table = Table(box=None, expand=True)
    table.add_column(f"liked lately ({person.num_likes} likes in all)", ratio=1, style="dim")
    table.add_column("gets, and what says most for it", ratio=1)
    gets = []
    for given in person.gets:
        gets.append(_literal(given.title).append(f"  ({given.tier})", "cyan"))
        gets += [Text.assemble("  ", _because(reason), style="dim") for reason in given.reasons[:1]]
    table.add_row(Group(*map(_literal, person.liked)), Group(*gets))
    return Panel(table, title=Text("user ").append(_literal(person.user_id)), title_align="left")


def person_screen(person: Person, night: str) -> Group:
    """All of one person's list, with every reason."""
    more = person.num_likes - len(person.liked)
    liked = [_literal(title) for title in person.liked] or [Text("nothing yet", "dim")]
    if more:
        liked.append(Text(f"and {more:,} more", "dim"))
    gets = Table(box=None, expand=True, title="Gets", title_justify="left", padding=(0, 1))
    gets.add_column("", justify="right", style="dim")
    gets.add_column("", ratio=1)
    gets.add_column("tier", style="cyan")
    gets.add_column("why, and its part of all that speaks for it", ratio=1, style="dim")
    for given in person.gets:
        gets.add_row(str(given.rank), _literal(given.title), given.tier, Group(*map(_because, given.reasons)))
    title = Text("user ").append(_literal(person.user_id)).append(f"  {night}", "dim")
    likes = Text(f"Likes, the latest first ({person.num_likes:,} in all)", "italic")
    return Group("", Panel(title, border_style="cyan"), likes, Columns(liked, padding=(0, 3)), "", gets)


def _because(reason: Reason) -> Text:
    words = {
        "liked": "because of ",
        "met": "having met ",
        "segment": "of what their segment liked lately, ",
        "popular": "of what everybody liked lately, ",
    }
    text = Text(words.get(reason.kind, f"{reason.kind}: "))
    if reason.title:
        text.append(_literal(reason.title)).append(", ")
    return text.append(f"{reason.share:.0%}" if reason.share >= 0.1 else f"{reason.share:.1%}")


def _literal(words: str) -> Text:
    """Somebody else's words: no markup of ours, no control character for the terminal, and not a page of them."""
    plain = "".join(letter if letter.isprintable() else " " for letter in words)
    return Text(plain if len(plain) <= LONGEST_TITLE else plain[: LONGEST_TITLE - 1] + "…")


def _files(published: Published) -> Group:
    rows = [("rows", uri) for uri in published.files[:FILES_SHOWN]]
    beside = [("beside", uri) for files in published.outputs.values() for uri in files[:1]]
    lines = [
        _unbroken(Text.assemble((f"  {name:<8}", "dim"), uri))
        for name, uri in [("LATEST", published.latest_uri), ("commit", published.commit_uri), *rows]
    ]
    if len(published.files) > FILES_SHOWN:
        lines.append(Text(f"          and {len(published.files) - FILES_SHOWN} more files", "dim"))
    lines += [_unbroken(Text.assemble((f"  {name:<8}", "dim"), uri)) for name, uri in beside]
    return Group("", Text("Where it is", "italic"), *lines)


def _next(next_steps: list[tuple[str, str]]) -> Group:
    lines = [
        line
        for command, what in next_steps
        for line in (_unbroken(Text(f"  {command}", "bold")), Text(f"          {what}", "dim"))
    ]
    return Group("", Text("What to type next", "italic"), *lines)


def _unbroken(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ignore"
    return line
