"""The house keeps its own rules: who imports whom, what is written nowhere, and that every setting explains itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tasks.config import NightlyConfig

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for room in ("flows", "tasks", "models") for path in (ROOT / room).rglob("*.py"))
MODELS = [path for path in SOURCES if path.is_relative_to(ROOT / "models")]
# Where a clock may be read: what is published carries its moment, a date in the future is refused, and so is, by a
# reader who asks for it, a night that is too old; and a hold says since when.
CLOCKS = {
    "flows/rollback_by_hand.py",
    "tasks/ingest/task.py",
    "tasks/publish/task.py",
    "tasks/publish/reader.py",
    "tasks/report/task.py",
}
MATHEMATICS = {"torch", "numpy", "scipy", "numba", "safetensors", "models"} | set(sys.stdlib_module_names)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(path.read_text(), filename=str(path)))


def imports_of(path: Path) -> set[str]:
    """Whole module names, also of imports within a function."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name_of(path)}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots_of(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports_of(path)}


def calls_of(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(the called name with its dots, the call)."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_directions_of_imports_are_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "5 kept, 0 broken" in finished.stdout


def test_prefect_is_imported_by_flows_and_task_files_only() -> None:
    others = [path for path in SOURCES if path.name != "task.py" and not path.is_relative_to(ROOT / "flows")]
    assert not [name_of(path) for path in others if "prefect" in roots_of(path)]


def test_task_files_are_imported_by_flows_only() -> None:
    inside = [path for path in SOURCES if not path.is_relative_to(ROOT / "flows")]
    task_file = re.compile(r"tasks\.\w+\.task")
    assert not [name_of(path) for path in inside if any(map(task_file.fullmatch, imports_of(path)))]


def test_models_are_mathematics() -> None:
    foreign = {name_of(path): roots_of(path) - MATHEMATICS for path in MODELS}
    assert not {name: roots for name, roots in foreign.items() if roots}


def test_ranks_are_known_to_one_file() -> None:
    knowing = {path.name for path in MODELS if any(m.startswith("torch.distributed") for m in imports_of(path))}
    assert knowing == {"distributed.py"}


def test_nothing_that_is_read_can_run_as_code() -> None:
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
    offences = [f"{name_of(path)}: {module}" for path in SOURCES for module in roots_of(path) & modules]
    for path in SOURCES:
        for name, call in calls_of(path):
            switched_on = {
                k.arg for k in call.keywords if not (isinstance(k.value, ast.Constant) and not k.value.value)
            }
            if name in calls or switched_on & {"shell", "allow_pickle"}:
                offences.append(f"{name_of(path)}: {ast.unparse(call)}")
    assert not offences


def test_an_object_is_written_in_one_request_never_as_a_stream() -> None:
    """A stream through s3fs publishes whatever was written before an error, and cannot carry a condition."""
    offences = []
    for path in SOURCES:
        for name, call in calls_of(path):
            if not name.endswith(".open") or name == "os.open":
                continue
            modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
            if any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wxa+") for mode in modes):
                offences.append(f"{name_of(path)}: {ast.unparse(call)}")
    assert not offences


def test_the_clock_is_read_where_it_may_be() -> None:
    reading = {
        name_of(path)
        for path in SOURCES
        for name, _ in calls_of(path)
        if name.split(".")[-1] in ("now", "utcnow", "today")
    }
    assert reading <= CLOCKS


def test_only_the_sweep_of_what_is_due_and_retention_remove_from_a_store_and_no_night_calls_them() -> None:
    removing = {
        name_of(path)
        for path in SOURCES
        for name, call in calls_of(path)
        if name.endswith(".remove") and "etag" in {keyword.arg for keyword in call.keywords}
    }
    assert removing == {"tasks/due.py", "tasks/publish/retention.py"}

    called = {(name.split(".")[-1], name_of(path)) for path in SOURCES for name, _ in calls_of(path)}

    def calling(function: str) -> set[str]:
        return {where for name, where in called if name == function}

    assert calling("sweep") == {"tasks/publish/task.py"}
    assert calling("remove_what_is_due") == {"flows/forget.py"}
    assert calling("apply_retention") == {"tasks/publish/retention.py"}
    assert calling("retain") == {"tasks/publish/task.py", "flows/retention_by_hand.py"}
    assert calling("remove_old_nights") == {"flows/retention.py"}
    night = (ROOT / "flows/nightly.py").read_text()
    assert "forget" not in night
    assert "retention" not in night


def test_every_module_says_what_it_is_for() -> None:
    assert not [name_of(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_the_poster_stays_a_poster() -> None:
    assert len((ROOT / "flows" / "nightly.py").read_text().splitlines()) <= 80


def test_packages_have_an_init_and_other_folders_none() -> None:
    """An installed package called models, docker or tests must neither hide ours nor be hidden."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists(), path.parent
    for folder in ("tests", "docker", "deploy", "benchmarks"):
        assert not list((ROOT / folder).rglob("__init__.py"))


def test_no_file_of_flows_hides_a_package() -> None:
    """Prefect puts flows/ on sys.path when it loads a flow by its path."""
    names = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert not names & ({"models", "tasks", "flows", "tests"} | set(sys.stdlib_module_names))


def settings_of(model: type[BaseModel], group: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{group}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{group}{name}.")


SETTINGS = dict(settings_of(NightlyConfig))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_default_a_line_of_help_and_bounds(name: str) -> None:
    field = SETTINGS[name]
    assert field.default is not PydanticUndefined, "the form must start without typing anything"
    assert field.description
    assert len(field.description) > 15
    assert field.description.endswith(".")
    kinds = {field.annotation, *get_args(field.annotation)}
    bounds = {key for bound in field.metadata for key in ("ge", "gt", "le", "lt", "max_length") if _has(bound, key)}
    if kinds & {int, float}:
        assert bounds & {"ge", "gt"}, "a number without a lower bound"
        assert bounds & {"le", "lt"}, "a number without an upper bound"
    if str in kinds:
        assert "max_length" in bounds


def _has(bound: Any, key: str) -> bool:
    return getattr(bound, key, None) is not None


def test_no_place_and_no_secret_can_be_set_by_who_may_start_a_run() -> None:
    words = ("uri", "path", "folder", "url", "key", "secret", "token", "password", "endpoint", "command")
    # train.rdzv_endpoint chooses among the places that the deployment's environment allows, no other (test_train.py).
    settings = [name for name in SETTINGS if name != "train.rdzv_endpoint"]
    assert not [name for name in settings for word in words if word in name.split(".")[-1].split("_")]
