"""Bring a Prefect server in line with this folder: work pools, deployments, automations. Safe to repeat.

python deploy/apply.py     the server is PREFECT_API_URL, its password PREFECT_API_AUTH_STRING

NIGHTGRAPH_OPERATOR_POOL names the pool whose worker may roll back and remove; without it, it is the nights' own.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).resolve().parent.parent
POOL = "nightgraph"
OPERATOR_POOL = "NIGHTGRAPH_OPERATOR_POOL"


def main() -> int:
    operator_pool = os.environ.get(OPERATOR_POOL) or POOL
    with get_client(sync_client=True) as client:
        for name in sorted({POOL, operator_pool}):
            _make_pool(client, name)
        for path in sorted((ROOT / "deploy" / "automations").glob("*.yaml")):
            _apply_automation(client, path)
    command = ["prefect", "--no-prompt", "deploy", "--prefect-file", "deploy/prefect.yaml", "--all"]
    environment = os.environ | {"PWD": str(ROOT), "PYTHONPATH": str(ROOT), OPERATOR_POOL: operator_pool}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False).returncode


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def _apply_automation(client: SyncPrefectClient, path: Path) -> None:
    """By name: the server lets two automations have the same one."""
    automation = AutomationCore.model_validate(yaml.safe_load(path.read_text()))
    there = client.read_automations_by_name(automation.name)
    if there:
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)


if __name__ == "__main__":
    sys.exit(main())
