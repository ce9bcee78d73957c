"""Every error a night can end in, by name. The name decides the reaction, and the README lists what to do.

A message says what was found, how much of it, what it means and what to do. No message carries a secret or a
user's id. `worth_a_retry` is true only where doing the same thing again can end differently.
"""

from typing import Any


class NightError(Exception):
    """A night that ended for a known reason. Nothing of it is live, or, after its commit, all of it."""

    worth_a_retry = False
    file_key: str | None = None  # the one input file that is to blame, where one is


class RunConfigError(NightError):
    """A setting or a place that no night can run with."""


class NightInProgress(NightError):
    """Another process on this machine is working on the same date of the same store."""


class PrefectUnreachable(NightError):
    """PREFECT_API_URL names a Prefect server, and nothing answers there."""


class ServerNotStarted(NightError):
    """Prefect's own server, which a night by hand brings along, did not start."""


# ---- the store


class StoreUnavailable(NightError):
    """The store does not answer, or not reliably enough."""

    worth_a_retry = True


class StoreNotFound(NightError):
    """The bucket or folder that should hold everything does not exist."""


class StoreDenied(NightError):
    """The store answers, and refuses these credentials."""


class StoreUnsafe(NightError):
    """The store accepts conditional writes and ignores the conditions: two nights could overwrite each other."""


class ObjectNotFound(NightError):
    """A key that should exist does not."""


class ObjectExists(NightError):
    """A create-only write found something under its key. Read it before you conclude that you lost."""


class ObjectChanged(NightError):
    """A compare-and-swap found another version than the one it read. Read again."""


# ---- what comes in


class InputMissing(NightError):
    """There are no event files, or no events in them."""


class InputCorrupt(NightError):
    """A file that cannot be read as Parquet."""


class InputUnstable(NightError):
    """A file changed or vanished while the night was reading it."""

    worth_a_retry = True


class ReaderFailed(NightError):
    """The process that decodes event files ended, and no file is to blame: memory ran out, or a bug here."""


class SchemaDrift(NightError):
    """A column is missing, or has a type that cannot be read as what it should be."""


class ContractViolation(NightError):
    """So many rows break a rule that whoever writes the events must have changed something."""


class InputIncomplete(NightError):
    """A day that the night needs is not all there, and the time to wait for it is over."""


class VolumeAnomaly(NightError):
    """A day has far fewer or far more rows than the days before it, or none at all."""


class InputTooLarge(NightError):
    """The night needs more memory or disk than this machine has, or a file claims or unpacks to more than events do."""


class TableInvalid(NightError):
    """An optional table contradicts itself, or holds more than a night can take in."""


class NothingAllowed(NightError):
    """The rules forbid every item for everybody."""


class NothingLiked(NightError):
    """There are valid events, and not one of them counts as a like."""


class GraphTooSmall(NightError):
    """Too few users, items, likes or instants to learn from and to judge."""


class CountsDisagree(NightError):
    """Rows went missing or appeared between two counts: a bug here, never a property of the data."""


class RegistryInvalid(NightError):
    """A file of the id registry is gone, damaged, or full."""


class RegistryCompacted(NightError):
    """The id registry was compacted while the night ran, so its row numbers mean nothing any more."""


class LeakDetected(NightError):
    """A training event is later than the events it would be judged on."""


# ---- training


class DeviceUnavailable(NightError):
    """A GPU was asked for where none is."""


class TrainingDiverged(NightError):
    """The loss stopped being a number, or rose, and did so again at half the learning rate."""


class TrainingOutOfMemory(NightError):
    """A rank needs, or asked for, more memory than its device has."""


class RankMismatch(NightError):
    """Two ranks do not have the same graph, settings or code."""


class TrainingLost(NightError):
    """A rank died or fell silent, more often than we relaunch."""

    worth_a_retry = True


# ---- recommending


class ModelNotFinite(NightError):
    """A table of the served model holds numbers that are none, or infinite."""


class RanksLost(NightError):
    """Whoever writes the recommendations died or fell silent, more often than we relaunch."""

    worth_a_retry = True


# ---- judging and publishing


class GateRefused(NightError):
    """The night is not good enough to go live."""


class UploadCorrupt(NightError):
    """What the store returns is not what was written."""


class PublishConflict(NightError):
    """Another night committed this version of this date first, from other inputs."""


class AttemptRevoked(NightError):
    """A night took so long that its files were given up, and perhaps removed, before it could commit."""


class NightGone(NightError):
    """A night to roll back to was never published, or its files were removed or are about to be."""


class NothingHeld(NightError):
    """There is no rollback to release."""


class UserNotFound(NightError):
    """The live night has no list for somebody who was asked for."""


class ForgettingIncomplete(NightError):
    """People are forgotten, and something that may hold them could not be rewritten."""


class NightStale(NightError):
    """The live night is older than its reader allows."""


class PublishUnresolved(NightError):
    """The commit's outcome could not be read before the deadline. Nothing was deleted."""

    worth_a_retry = True


class ManifestInvalid(NightError):
    """LATEST.json or a commit cannot be read as a manifest of a format known here."""


class DiskFull(NightError):
    """The work folder's disk cannot hold what the night needs."""


def is_worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    """For Prefect's retry_condition_fn: how often and after how long is the deployment's, whether is the error's."""
    error = error_of(state)
    return isinstance(error, NightError) and error.worth_a_retry


def error_of(state: Any) -> object:
    """What a failed task raised, from Prefect's state of it, which may have wrapped it."""
    return getattr(state.data, "result", state.data)
