"""Bring a Prefect server in line with this folder: work pool, deployment, automations. Safe to repeat.

python deploy/apply.py     the server is PREFECT_API_URL, its password PREFECT_API_AUTH_STRING
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


def main() -> int:
    with get_client(sync_client=True) as client:
        _make_pool(client)
        for path in sorted((ROOT / "deploy" / "automations").glob("*.yaml")):
            _apply_automation(client, path)
    command = ["prefect", "--no-prompt", "deploy", "--prefect-file", "deploy/prefect.yaml", "--all"]
    environment = os.environ | {"PWD": str(ROOT), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False).returncode


def _make_pool(client: SyncPrefectClient) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


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
