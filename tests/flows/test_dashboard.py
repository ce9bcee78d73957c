"""The dashboard as a person uses it: `make up`, the form, a run, a cancel, `make down`. In the order of this file.

NIGHTGRAPH_PICTURES=1 saves what the browser saw as deploy/pictures/*.png.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.stack import ROOT, Stack, StackError, ask, down, members, recorded, up
from tasks.ingest.town import write_town
from tasks.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # a browser's pipes at its end

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
FINISHED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# Two ranks that would train for many minutes.
ENDLESS = {"config": {"train": {"max_epochs": 1000, "patience": 100, "validate_every": 100, "ranks": 2}}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What `make up` starts, on a free port, with the town's events to read."""
    folder = tmp_path_factory.mktemp("dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stack = Stack(state=folder / "up", port=port, store=str(folder / "store"), work=folder / "work")
    write_town(open_store(stack.store))
    try:
        up(stack)
        yield stack
    finally:
        down(stack)


@pytest.fixture(scope="module")
def deployment(stack: Stack) -> dict[str, Any]:
    return ask(stack, "GET", "/deployments/name/nightly/nightly")


# ---- what the form offers


def test_every_setting_has_a_group_a_line_of_help_a_default_and_bounds(deployment: dict[str, Any]) -> None:
    schema = deployment["parameter_openapi_schema"]
    definitions = schema["definitions"]
    config = definitions["NightlyConfig"]
    assert all(parameter["description"] for parameter in schema["properties"].values())
    assert not schema.get("required"), "the form can be submitted as it is"
    faults = []
    for group, reference in config["properties"].items():
        assert reference["description"], group
        model = definitions[reference["$ref"].rsplit("/", 1)[-1]]
        if model["title"].endswith("Config"):
            faults.append(f"{group} is headed by the name of a class")
        for name, field in model["properties"].items():
            if not field.get("description"):
                faults.append(f"{group}.{name} has no line of help")
            if "default" not in field:
                faults.append(f"{group}.{name} has no default")
            for branch in field.get("anyOf", [field]):
                has_floor = "minimum" in branch or "exclusiveMinimum" in branch
                has_roof = "maximum" in branch or "exclusiveMaximum" in branch
                if branch.get("type") in ("integer", "number") and not (has_floor and has_roof):
                    faults.append(f"{group}.{name} has no bounds")
    assert faults == []
    assert len(config["properties"]) == 6


def test_the_deployment_is_scheduled_at_night_and_refuses_a_second_run(
    stack: Stack, deployment: dict[str, Any]
) -> None:
    schedule = deployment["schedules"][0]
    assert schedule["active"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("15 2 * * *", "UTC")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    environment = deployment["job_variables"]["env"]
    assert environment["NIGHTGRAPH_STORE"] == stack.store
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30", "or the automation ends healthy runs"
    assert environment["PREFECT_TASKS_DEFAULT_RETRIES"] == "2"
    assert environment["PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS"] == "60"
    assert not [name for name in environment if name.startswith("AWS_")], "job variables are stored in clear"
    assert ask(stack, "GET", "/work_pools/nightgraph")["type"] == "process"
    # What tells a night of the schedule, whose date is that day, from one that somebody starts.
    planned = _eventually(lambda: ask(stack, "POST", "/flow_runs/filter", {"limit": 5}), within_s=60)
    assert all(run["auto_scheduled"] and run["expected_start_time"][11:16] == "02:15" for run in planned)


@pytest.mark.parametrize(
    ("config", "field"),
    [({"train": {"width": 1}}, "width"), ({"recommend": {"k": 0}}, "k"), ({"recommend": {"kk": 5}}, "kk")],
)
def test_a_setting_out_of_bounds_is_refused_by_name_before_a_run_exists(
    stack: Stack, deployment: dict[str, Any], config: dict[str, Any], field: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        _start_run(stack, deployment, {"config": config})
    with refusal.value as answer:
        assert answer.code in (409, 422)
        assert field in json.loads(answer.read())["detail"]


# ---- up


def test_up_again_starts_nothing_twice(stack: Stack) -> None:
    before = sorted(process.pid for process in members(stack))
    server = recorded(stack, "server")
    assert "up already" in up(stack)
    assert sorted(process.pid for process in members(stack)) == before
    assert recorded(stack, "server") == server
    automations = ask(stack, "POST", "/automations/filter", {})
    assert [automation["name"] for automation in automations] == ["nightgraph-silent-nights"]


def test_up_says_so_when_the_port_is_taken(stack: Stack, tmp_path: Path) -> None:
    second = Stack(tmp_path / "up", stack.port, stack.store, tmp_path / "work")
    with pytest.raises(StackError, match=f"port {stack.port} is in use by another program"):
        up(second)
    assert members(second) == []


def test_up_on_another_port_says_where_it_is_already(stack: Stack) -> None:
    with pytest.raises(StackError, match=f"up already, on port {stack.port}"):
        up(Stack(stack.state, stack.port + 1, stack.store, stack.work))


# ---- runs


def test_a_run_with_changed_settings_publishes_by_them_and_leaves_its_report(
    stack: Stack, deployment: dict[str, Any]
) -> None:
    run = _start_run(stack, deployment, {"config": {"train": {"max_epochs": 2}, "recommend": {"k": 7}}})
    assert not run["auto_scheduled"]
    assert _wait_for(stack, run, *FINISHED)["name"] == "Completed", _log_lines(stack, run)
    latest = _latest(stack)
    assert latest["k"] == 7
    assert latest["as_of"] == "2026-11-23", "started by hand: the day after the town's last event, not today"
    assert latest["rows"] == 7 * latest["users"]
    artifacts = {artifact["key"]: artifact for artifact in _artifacts(stack, run)}
    assert artifacts["night"]["type"] == "markdown"
    assert artifacts["night"]["data"].startswith("# ")
    assert artifacts["training"]["type"] == "progress"
    assert artifacts["training"]["data"] == 100
    said = _log_lines(stack, run)
    assert any(name.startswith("nightgraph.") for name, _ in said), "the rooms' own lines are missing in the dashboard"


def test_a_person_fills_the_form_and_sees_the_night_complete(stack: Stack) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}; apt-get install chromium brings it")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(30_000)
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))

        page.goto(stack.url)
        page.get_by_role("button", name="Deployments", exact=True).click()
        page.locator("a[href*='/deployments/deployment/']", has_text="nightly").first.click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").first.click()
        page.get_by_text("Items for every user.").wait_for()
        _take_picture(page, "form")
        _field(page, "Items for every user.").fill("9")
        _field(page, "Passes at most;").fill("2")
        page.get_by_role("button", name="Submit").click()
        run = _eventually(lambda: _newest_run(stack, k=9), within_s=90)
        assert _wait_for(stack, run, *FINISHED)["name"] == "Completed", _log_lines(stack, run)

        page.goto(f"{stack.url}/runs/flow-run/{run['id']}")
        page.get_by_text("Completed", exact=True).first.wait_for()
        page.get_by_text("Artifacts", exact=True).last.click()
        page.locator(".artifact-card", has_text="night").first.wait_for()
        _take_picture(page, "run")
        report = next(artifact for artifact in _artifacts(stack, run) if artifact["key"] == "night")
        page.goto(f"{stack.url}/artifacts/artifact/{report['id']}")
        page.get_by_role("heading", name="Night of").first.wait_for()
        page.get_by_role("heading", name="Quality").first.evaluate("heading => heading.scrollIntoView()")
        _take_picture(page, "report")
        browser.close()
    assert _latest(stack)["k"] == 9
    assert asked == {f"127.0.0.1:{stack.port}"}, "the dashboard asked somebody else"


def test_a_rollback_from_the_dashboard_brings_an_earlier_version_back_and_holds_it(stack: Stack) -> None:
    """The run before the form's published 7 items for everybody, as version 1."""
    rollback = ask(stack, "GET", "/deployments/name/rollback/rollback")
    with pytest.raises(urllib.error.HTTPError):
        _start_run(stack, rollback, {"to": "2026-11-23", "who": "Anna"})
    asked = {"to": "2026-11-23", "version": 1, "who": "Anna", "reason": "nine are too many"}
    run = _start_run(stack, rollback, asked)
    assert _wait_for(stack, run, *FINISHED)["name"] == "Completed", _log_lines(stack, run)
    latest = _latest(stack)
    assert (latest["k"], latest["rolled_back_to"]) == (7, "2026-11-23 v1")
    assert latest["held"].endswith("Anna: nine are too many")
    for name in ("release", "repair", "retention"):
        there = ask(stack, "GET", f"/deployments/name/{name}/{name}")
        assert all(parameter["description"] for parameter in there["parameter_openapi_schema"]["properties"].values())
        assert not [one for one in there["schedules"] if one["active"]], "a person turns retention on"


def test_a_cancelled_run_leaves_no_training_rank_and_the_live_night_as_it_was(
    stack: Stack, deployment: dict[str, Any]
) -> None:
    """Started by the flow's file rather than its module; while it runs, a second one is turned away."""
    by_file = _deploy_by_file(stack, deployment)
    before = (Path(stack.store) / "_meta" / "LATEST.json").read_bytes()
    run = _start_run(stack, by_file, ENDLESS)
    ranks = _eventually(lambda: _training(stack, at_least=3), within_s=60)  # torchrun and its two ranks
    second = _start_run(stack, by_file, {})
    turned_away = _wait_for(stack, second, *FINISHED)
    assert (turned_away["name"], turned_away["message"]) == ("Cancelled", "Deployment concurrency limit reached.")
    assert all(process.is_running() for process in ranks)

    ask(stack, "POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert _wait_for(stack, run, *FINISHED)["name"] == "Cancelled"
    _, left = psutil.wait_procs(ranks, timeout=10)
    assert left == []
    assert _training(stack, at_least=1) is None
    assert (Path(stack.store) / "_meta" / "LATEST.json").read_bytes() == before


# ---- down


def test_down_ends_everything_a_run_in_training_too(stack: Stack, deployment: dict[str, Any]) -> None:
    run = _start_run(stack, deployment, ENDLESS)
    _eventually(lambda: _training(stack, at_least=3), within_s=60)
    # The worker dies first: its run is nobody's child now.
    worker = recorded(stack, "worker")
    assert worker
    psutil.Process(worker["pid"]).kill()
    everyone = members(stack)
    assert "1 running night marked Cancelled" in down(stack) or _is_closed(stack, run)
    _, left = psutil.wait_procs(everyone, timeout=5)
    assert left == []
    assert members(stack) == []
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", stack.port))
    assert down(stack) == "nothing is up."
    assert _latest(stack)["k"] in (7, 9)


def test_make_calls_the_script_with_what_was_given() -> None:
    if not (ROOT / ".venv" / "runtime").exists():
        pytest.skip("no .venv made by make")
    command = ["make", "--dry-run", "up", "PORT=4321", "STORE=s3://bucket/prefix"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'deploy/stack.py up --port "4321" --store "s3://bucket/prefix"' in printed
    said = subprocess.run(
        [sys.executable, "deploy/stack.py", "down", "--state", "/nowhere/at/all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said == "nothing is up.\n"


# ---- how the tests ask


def _start_run(stack: Stack, deployment: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    run: dict[str, Any] = ask(stack, "POST", f"/deployments/{deployment['id']}/create_flow_run", body)
    return run


def _wait_for(stack: Stack, run: dict[str, Any], *types: str, within_s: float = 90.0) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        state: dict[str, Any] = ask(stack, "GET", f"/flow_runs/{run['id']}")["state"]
        return state if state["type"] in types else None

    return _eventually(reached, within_s=within_s)


def _eventually(found: Callable[[], Any], *, within_s: float = 30.0) -> Any:
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        if answer := found():
            return answer
        time.sleep(0.25)
    raise AssertionError(f"still not so after {within_s:.0f} s")


def _newest_run(stack: Stack, *, k: int) -> dict[str, Any] | None:
    runs = ask(stack, "POST", "/flow_runs/filter", {"sort": "ID_DESC", "limit": 50})
    return next((run for run in runs if run["parameters"].get("config", {}).get("recommend", {}).get("k") == k), None)


def _artifacts(stack: Stack, run: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(stack, "POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return found


def _log_lines(stack: Stack, run: dict[str, Any]) -> list[tuple[str, str]]:
    lines = ask(stack, "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
    return [(line["name"], line["message"]) for line in lines]


def _latest(stack: Stack) -> dict[str, Any]:
    latest: dict[str, Any] = json.loads((Path(stack.store) / "_meta" / "LATEST.json").read_text())
    return latest


def _training(stack: Stack, *, at_least: int) -> list[psutil.Process] | None:
    """torchrun and its ranks: they name their spec.json, which lies in this stack's work folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it ended while we looked
            words = process.cmdline()
            if any(word.startswith(str(stack.work)) and word.endswith("spec.json") for word in words):
                found.append(process)
    return found if len(found) >= at_least else None


def _deploy_by_file(stack: Stack, deployment: dict[str, Any]) -> dict[str, Any]:
    kept = ("flow_id", "pull_steps", "job_variables", "parameter_openapi_schema", "enforce_parameter_schema")
    body = {name: deployment[name] for name in kept} | {
        "name": "by-file",
        "entrypoint": "flows/nightly.py:nightly",
        "path": str(ROOT),
        "work_pool_name": "nightgraph",
        "concurrency_limit": 1,
        "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
    }
    made: dict[str, Any] = ask(stack, "POST", "/deployments/", body)
    return made


def _is_closed(stack: Stack, run: dict[str, Any]) -> bool:
    """Read from the database that is left: the server is gone."""
    import sqlite3

    connection = sqlite3.connect(stack.state / "prefect" / "prefect.db")
    try:
        rows = connection.execute("select state_type from flow_run where name = ?", (run["name"],)).fetchall()
    finally:
        connection.close()
    return [row[0] for row in rows] in (["CRASHED"], ["CANCELLED"])


def _field(page: Any, help_text: str) -> Any:
    """The input under this line of help."""
    return page.locator(".schema-form-property").filter(has_text=help_text).last.locator("input")


def _take_picture(page: Any, name: str) -> None:
    if os.environ.get("NIGHTGRAPH_PICTURES"):
        page.wait_for_timeout(1500)  # until toasts and bars have settled
        page.screenshot(path=ROOT / "deploy" / "pictures" / f"{name}.png")
