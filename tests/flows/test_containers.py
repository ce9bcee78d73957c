"""The image and the compose file, as far as they can be judged without building them."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = ("server", "apply", "worker", "worker-gpu", "forget")


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The command of Docker's compose plugin."""
    if not shutil.which("docker"):
        pytest.skip("no docker command; the file is judged as YAML by the other tests")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin; the file is judged as YAML by the other tests")
    return ["docker", "compose", "--env-file", str(ROOT / "docker" / ".env.example"), "-f", str(COMPOSE)]


@pytest.mark.parametrize(("profile", "worker"), [("cpu", "worker"), ("gpu", "worker-gpu")])
def test_compose_reads_the_file_in_both_profiles(
    compose: list[str], profile: str, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()):
        monkeypatch.setenv(name, "given")
    command = [*compose, "--profile", profile, "config", "--services"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"postgres", "server", "apply", "s3", "bucket", worker} <= set(done.stdout.split())


def test_each_worker_belongs_to_one_profile_and_only_one_asks_for_gpus() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "worker": ["cpu"],
        "worker-gpu": ["gpu"],
        "forget": ["forget"],
    }
    device = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in SERVICES["worker"]


def test_every_image_has_a_version() -> None:
    bases = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    images = [service["image"] for service in SERVICES.values()] + bases
    assert len(bases) == 1
    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []


def test_what_runs_our_code_can_change_nothing_but_its_scratch() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["tmpfs"] == ["/tmp:size=1g,mode=1777"], name
        assert all(not volume.startswith(("/", ".")) for volume in service.get("volumes", [])), name


def test_no_service_is_privileged_or_sees_the_host() -> None:
    for name, service in SERVICES.items():
        assert not {"privileged", "pid", "ipc", "cap_add", "network_mode", "devices"} & set(service), name
        assert "docker.sock" not in json.dumps(service), name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_worker_and_the_database_have_no_way_out() -> None:
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["inside"]["internal"] is True
    for name in ("postgres", "worker", "worker-gpu", "apply", "forget"):
        assert SERVICES[name]["networks"] == ["inside"], name


def test_secrets_come_from_the_environment_and_stand_nowhere() -> None:
    example = dict(
        line.split("=", 1)
        for line in (ROOT / "docker" / ".env.example").read_text().splitlines()
        if "=" in line and line[0] != "#"
    )
    asked = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert asked == set(example)
    assert {name for name, value in example.items() if value} == {"NIGHTGRAPH_STORE"}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|ROOT_USER", name):
                assert re.fullmatch(r"\$\{\w+:\?.*\}", value), name
    assert not re.search(r"(?im)^\s*(ENV|ARG).*(password|secret|token|auth_string)", DOCKERFILE)
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "docker/.env"], cwd=ROOT, check=False, capture_output=True
    )
    assert ignored.returncode == 0, "docker/.env could be committed"


def test_only_the_administrator_services_know_the_s3_servers_root_key() -> None:
    knowing = {name for name, service in SERVICES.items() if "S3_ROOT" in json.dumps(service)}
    assert knowing == {"s3", "bucket"}
    assert not any("AWS" in name for name in SERVICES["apply"]["environment"])


def test_only_who_forgets_knows_the_key_that_may_remove() -> None:
    knowing = {name for name, service in SERVICES.items() if "FORGET_" in json.dumps(service)}
    assert knowing == {"bucket", "forget"}
    assert "JOB_" not in json.dumps(SERVICES["forget"])
    assert SERVICES["forget"]["volumes"] == SERVICES["worker"]["volumes"], "scratch of nights is cleared, too"


def test_start_order_waits_for_health() -> None:
    def needs(name: str) -> dict[str, str]:
        return {other: how["condition"] for other, how in SERVICES[name]["depends_on"].items()}

    assert needs("server") == {"postgres": "service_healthy"}
    assert needs("apply") == {"server": "service_healthy"}
    assert needs("bucket") == {"s3": "service_healthy"}
    for worker in ("worker", "worker-gpu"):
        done = "service_completed_successfully"
        assert needs(worker) == {"apply": done, "bucket": done}
    for name in ("postgres", "server", "s3"):
        assert SERVICES[name]["healthcheck"]["test"], name


def test_the_image_runs_as_a_numbered_user_with_locked_packages_and_only_what_it_needs() -> None:
    last_stage = DOCKERFILE.split("FROM ")[-1]
    assert re.findall(r"^USER (.+)$", last_stage, re.MULTILINE) == ["10001:10001"]
    assert "-c constraints.txt" in DOCKERFILE
    assert "pip check" in DOCKERFILE
    assert "PYTHONPATH=/app" in last_stage
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+)$", last_stage, re.MULTILINE) for name in line.split()[:-1]
    }
    assert copied == {"flows", "tasks", "models", "deploy", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert pinned.startswith(">=3.11")
    assert "python:3.11-slim" in DOCKERFILE
