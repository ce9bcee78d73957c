"""A whole night in a process without Prefect: its decorators do nothing, and so do its artifacts.

Import this before anything of flows/. It is for tries by the hundred; tests/flows has nights on a real server.
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

assert "prefect" not in sys.modules, "the real one is here already"


def _as_it_is(*functions: Callable[..., Any], **_: Any) -> Any:
    """@task, @task(...), @flow(...)"""
    return functions[0] if functions else lambda function: function


class _Named:
    """For annotations: Flow[Any, Any], State[Any]."""

    def __class_getitem__(cls, _: object) -> type:
        return cls


def _nothing(*_: object, **__: object) -> None:
    return None


MODULES: dict[str, dict[str, Any]] = {
    "prefect": {"task": _as_it_is, "flow": _as_it_is, "Flow": _Named, "State": _Named},
    "prefect.context": {"FlowRunContext": SimpleNamespace(get=_nothing)},
    "prefect.runtime": {"flow_run": SimpleNamespace(id=None, run_count=1)},
    "prefect.artifacts": {
        "create_progress_artifact": _nothing,
        "update_progress_artifact": _nothing,
        "create_markdown_artifact": _nothing,
    },
    "prefect.client": {},
    "prefect.client.schemas": {},
    "prefect.client.schemas.objects": {"FlowRun": _Named},
}
for _name, _contents in MODULES.items():
    sys.modules[_name] = ModuleType(_name)
    vars(sys.modules[_name]).update(_contents)

from flows.nightly import nightly  # noqa: E402

__all__ = ["nightly"]
