"""What a process that touches input files may take: a hostile file ends that process, never the night."""

import os
import resource
from pathlib import Path

SECONDS_ALWAYS, SECONDS_A_FILE, SECONDS_A_MEGABYTE = 120.0, 0.5, 4.0
FOOTERS_BYTES = 4 << 30
FIRST_TO_GO = "500"  # for the kernel, where memory runs out: this one before the process of the night


def reader_bytes(memory_mib: int) -> int:
    """ingest.memory_mib is what reading is laid out for. One row group or table that is decoded at once may be more."""
    return (3 * memory_mib << 20) + FOOTERS_BYTES


def limit_memory(num_bytes: int) -> None:
    """So much more than now, of address space that can hold data; files that are mapped to be read do not count."""
    held = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) << 10
    _lower(resource.RLIMIT_DATA, held + num_bytes)
    Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def limit_address_space(num_bytes: int) -> None:
    """So much more than now, of everything: for footers, which need little."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _lower(resource.RLIMIT_AS, held + num_bytes)


def limit_cpu(*, num_files: int, num_bytes: int) -> None:
    """Far more than any honest file takes on any machine; a reader that never ends does end."""
    seconds = SECONDS_ALWAYS + SECONDS_A_FILE * num_files + SECONDS_A_MEGABYTE * num_bytes / 1e6
    _lower(resource.RLIMIT_CPU, round(seconds))


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
