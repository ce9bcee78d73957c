"""A process that touches input files is held to its memory and its time, whatever stands in them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import TypeAdapter

from tasks.config import IngestConfig
from tasks.ingest import child, footer_child
from tasks.ingest.limits import FIRST_TO_GO, FOOTERS_BYTES, SECONDS_A_MEGABYTE, SECONDS_ALWAYS, reader_bytes
from tasks.run import PROJECT_ROOT

MIB = 1 << 20
HELD_AT_MOST = 4 << 30  # address space of what a process has loaded by then


def python(script: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("limit", ["limit_memory", "limit_address_space"])
@pytest.mark.parametrize(("asked_mib", "code"), [(16, 0), (256, 7)])
def test_what_asks_for_more_memory_than_its_limit_gets_none(limit: str, asked_mib: int, code: int) -> None:
    done = python(
        "import sys\n"
        f"from tasks.ingest.limits import {limit}\n"
        f"{limit}({64 * MIB})\n"
        "try:\n"
        f"    bytearray({asked_mib * MIB})\n"
        "except MemoryError:\n"
        "    sys.exit(7)\n"
    )
    assert done.returncode == code, done.stderr


def test_what_never_ends_is_ended() -> None:
    done = python(
        "from tasks.ingest import limits\n"
        "limits.SECONDS_ALWAYS = 1.0\n"
        "limits.limit_cpu(num_files=0, num_bytes=0)\n"
        "while True: pass\n"
    )
    assert -done.returncode in (signal.SIGXCPU, signal.SIGKILL), done


def limits_of(module: ModuleType, job: str, *, stand_in: str) -> dict[str, int]:
    """Of a child while it works at a job: how far each limit is above what it has, and when the kernel ends it."""
    done = python(
        "import json, resource\n"
        "from pathlib import Path\n"
        f"import {module.__name__} as child\n"
        "def look(*_):\n"
        "    kinds = ('RLIMIT_DATA', 'RLIMIT_AS', 'RLIMIT_CPU')\n"
        "    said = {kind: resource.getrlimit(getattr(resource, kind))[0] for kind in kinds}\n"
        "    print(json.dumps(said | {'oom': int(Path('/proc/self/oom_score_adj').read_text())}))\n"
        "    return {}\n"
        f"child.{stand_in} = look\n"
        f"child.work({job!r})\n"
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_who_decodes_works_within_its_limits(tmp_path: Path) -> None:
    settings = IngestConfig(memory_mib=256)
    job = TypeAdapter(child.Job).dump_json(child.Job("last event", str(tmp_path), [], settings)).decode()
    found = limits_of(child, job, stand_in="_work")
    assert reader_bytes(256) <= found["RLIMIT_DATA"] < reader_bytes(256) + HELD_AT_MOST
    assert found["RLIMIT_CPU"] == SECONDS_ALWAYS
    assert found["oom"] == int(FIRST_TO_GO)


def test_who_reads_footers_works_within_its_limits(tmp_path: Path) -> None:
    job = TypeAdapter(footer_child.Job).dump_json(footer_child.Job(str(tmp_path), [], IngestConfig())).decode()
    found = limits_of(footer_child, job, stand_in="inspect_each")
    assert FOOTERS_BYTES <= found["RLIMIT_AS"] < FOOTERS_BYTES + HELD_AT_MOST
    assert found["RLIMIT_CPU"] == SECONDS_ALWAYS


def test_larger_files_have_longer() -> None:
    def seconds(num_bytes: int) -> int:
        done = python(
            "import resource\n"
            "from tasks.ingest.limits import limit_cpu\n"
            f"limit_cpu(num_files=2, num_bytes={num_bytes})\n"
            "print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        )
        return int(done.stdout)

    assert seconds(10**9) - seconds(0) == round(SECONDS_A_MEGABYTE * 1000)
