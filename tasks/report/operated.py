"""What an operator did about what readers get, in words: on the screen and in the dashboard."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.contracts import GoneFiles, LiveNight, Retained

ROWS_SHOWN = 40


def live_panel(live: LiveNight | None) -> Panel:
    if live is None:
        return Panel("nothing was ever published here: there is nothing to do.", border_style="cyan")
    text = f"live: the night of {live.as_of}, version {live.version}"
    if live.rolled_back_to:
        text += f", which is {live.rolled_back_to} again"
    made = f"{live.created_at:%Y-%m-%d %H:%M} UTC"
    text += f"; {live.rows:,} rows for {live.users:,} users in {live.files:,} files, made {made}."
    if live.held:
        text += f"\nheld since {live.held}. Nights go on, are judged and kept; to let readers follow them: make release"
    return Panel(Text(text), title=live.latest_uri, border_style="cyan")


def retained_screen(done: Retained) -> RenderableType:
    table = Table("night", "version", "why", "files", "size", title=done.store_uri, title_justify="left")
    for one in done.gone[:ROWS_SHOWN]:
        table.add_row(*_cells(one))
    return Group(*([table] if done.gone else []), Text(_summary(done)))


def retained_markdown(done: Retained) -> str:
    rows = ["| night | version | why | files | size |", "|---|---|---|---:|---:|"]
    rows += [f"| {' | '.join(_cells(one))} |" for one in done.gone[:ROWS_SHOWN]]
    return "\n".join(["# Retention", "", _summary(done), "", *(rows if done.gone else [])])


def _cells(one: GoneFiles) -> tuple[str, str, str, str, str]:
    version = str(one.version) if one.version else "never published"
    return str(one.as_of), version, one.why, f"{one.files:,}", _size(one.num_bytes)


def _summary(done: Retained) -> str:
    num_bytes = sum(one.num_bytes for one in done.gone)
    verb = "were removed" if done.applied else "would be removed"
    said = [
        f"The files of {len(done.gone):,} attempts {verb}, {_size(num_bytes)}; {done.kept:,} are kept, "
        f"{_size(done.kept_bytes)}: the newest {done.keep_dates:,} dates, what is live or held, and whatever was live "
        "within 48 hours."
    ]
    if len(done.gone) > ROWS_SHOWN:
        said.append(f"{len(done.gone) - ROWS_SHOWN:,} more than are listed.")
    if done.left_alone:
        said.append(f"{done.left_alone:,} changed meanwhile and were left alone: run again.")
    if done.unknown:
        said.append(
            f"{len(done.unknown):,} attempts may still commit, or have no record, and stay until somebody has looked: "
            f"{', '.join(done.unknown[:5])}."
        )
    if not done.applied and done.gone:
        said.append("Nothing was removed. To do it: make retention APPLY=1.")
    return " ".join(said)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
