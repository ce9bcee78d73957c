"""What compacting the registry gave up, or would, in words."""

from rich.panel import Panel

from tasks.contracts import Compacted


def compacted_panel(done: Compacted) -> Panel:
    if not done.units:
        text = "no night has digested a day since the last compaction: there is nothing to give up"
    elif (done.users_kept, done.items_kept) == (done.users, done.items):
        text = (
            f"each of the {done.users:,} rows of users and {done.items:,} of items is needed, by {done.units:,} "
            "digested days: there is nothing to give up, and the registry stays as it is"
        )
    else:
        verb = "were" if done.applied else "would be"
        text = (
            f"{done.users - done.users_kept:,} of {done.users:,} rows of users and {done.items - done.items_kept:,} of "
            f"{done.items:,} of items {verb} given up: no file that is there any more has an event of theirs, "
            f"by {done.units:,} digested days, or they were forgotten"
        )
        text += (
            f". The registry is in epoch {done.epoch + 1}: the next night reads every day and starts cold"
            if done.applied
            else ". The next night would read every day and start cold. To do it: make compact-registry APPLY=1"
        )
    if done.due:
        text += f". {done.due:,} objects are of no use any more; make forget-sweep removes them in 48 hours"
    return Panel(f"{text}.", title=done.store_uri, border_style="cyan")
