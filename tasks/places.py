"""Whether this machine may and can train as it is asked to: known before a byte is read, so a night asks at once.

The room that trains asks again: it may run on another machine than the one that opened the night.
"""

import os

from tasks.config import TrainConfig
from tasks.errors import DeviceUnavailable, RunConfigError

MEETING_PLACES_VARIABLE = "NIGHTGRAPH_RDZV_ENDPOINTS"


def ensure_trainable(settings: TrainConfig, gpus: int) -> None:
    """Raises DeviceUnavailable where GPUs are asked for that are not there, RunConfigError for a forbidden meeting.

    Asking for more GPUs than there are is an error, not a slower night.
    """
    if settings.device == "cuda" and gpus < (settings.ranks or 1):
        raise DeviceUnavailable(
            f"train.device is cuda with {settings.ranks or 1} ranks, and this machine has {gpus} usable GPUs. "
            "Nothing was started. Set train.device to auto or cpu, or lower train.ranks."
        )
    # Who may start a run must not be able to have this machine connect to any place they like.
    allowed = [place.strip() for place in os.environ.get(MEETING_PLACES_VARIABLE, "").split(",")]
    if settings.nodes > 1 and settings.rdzv_endpoint not in allowed:
        raise RunConfigError(
            f"train.rdzv_endpoint is not among the places that the deployment allows. Put it into "
            f"{MEETING_PLACES_VARIABLE} (comma-separated) where nights run. Nothing was started."
        )
