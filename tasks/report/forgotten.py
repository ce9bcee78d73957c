"""What an act of forgetting did, what is still to come, and what remains where: as a table, without an id in it."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.contracts import Forgotten

FILES_SHOWN = 20


def forgotten_screen(done: Forgotten) -> Group:
    people = f"{done.people:,} {'person' if done.people == 1 else 'people'}"
    title = f"{people} forgotten in {done.store_uri}" if done.people else f"what is due in {done.store_uri}"
    parts: list[RenderableType] = [Panel(Text(title, "bold"), border_style="cyan"), _done(done), _remaining(done)]
    if done.failed:
        parts.append(_listed("Could not be done", done.failed, "yellow"))
    return Group("", *parts)


def _done(done: Forgotten) -> Table:
    table = _table("Done")
    if done.ids:
        before = f", {done.ids.forgotten_before:,} of them before" if done.ids.forgotten_before else ""
        table.add_row(
            "registry", f"{done.people:,} kept out for ever{before}; {done.ids.had_a_row:,} had a row of events"
        )
    table.add_row("digested days", f"{done.days.units:,} rewritten, without {done.days.rows:,} rows")
    nights = "".join(f", {night}" for night in done.nights.nights[-FILES_SHOWN:])
    table.add_row(
        "kept nights", f"{len(done.nights.nights):,} have a new version without {done.nights.rows:,} rows{nights}"
    )
    busy = f"; left alone, because nights are at work there: {', '.join(done.busy)}" if done.busy else ""
    table.add_row("this machine", f"scratch of unfinished nights is gone{busy}")
    table.add_row("removed", f"{done.swept.removed:,} replaced objects, {_size(done.swept.removed_bytes)}")
    return table


def _remaining(done: Forgotten) -> Table:
    table = _table("What remains, and until when")
    swept = done.swept
    if swept.waiting:
        table.add_row(
            "replaced objects",
            f"{swept.waiting:,}, {_size(swept.waiting_bytes)}: readers may be in the middle of them. They go with "
            f"make forget-sweep, or the next make forget, from {swept.next_at:%Y-%m-%d %H:%M} UTC on",
        )
    if swept.kept:
        table.add_row(
            "due, in use", f"{swept.kept:,}: a night was published meanwhile, and make forget-sweep rewrites it"
        )
    if done.busy:
        table.add_row("scratch", f"of nights of {', '.join(done.busy)}: goes when they end; then make forget-sweep")
    if done.remains is not None:
        rows = done.remains.rows
        table.add_row(
            "your own files",
            f"{sum(rows.values()):,} rows in {len(rows):,} files: events and tables are yours to clean. Nights do not "
            "use these rows, whether they stay or come again",
        )
        for key, count in list(rows.items())[:FILES_SHOWN]:
            table.add_row("", f"{count:>9,}  {key}")
        if len(rows) > FILES_SHOWN:
            table.add_row("", f"and {len(rows) - FILES_SHOWN:,} more files")
        for key, why in list(done.remains.unread.items())[:FILES_SHOWN]:
            table.add_row("", f"not counted: {key} ({why})")
    table.add_row("others' vectors", "hold what they learned of them, until the next night is published")
    table.add_row("elsewhere", "other machines' scratch of nights, and what was copied or backed up out of the store")
    return table


def _listed(title: str, found: dict[str, str], style: str) -> Table:
    table = _table(title)
    for what, why in found.items():
        table.add_row(Text(what, style), why)
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
