"""Figures of the fault tests: each part keeps its own file, and `results/faults.json` is all of them together."""

import json
from typing import Any

from benchmarks.common import RESULTS, commit, machine

# What is tried, what came out well, and what must be 0.
PAIRS = {
    "kills": ("kills_identical", "kills_tried"),
    "kills at every request": ("request_kills_identical", "request_kills_tried"),
    "races for one date": ("races_one_commit", "races_tried"),
    "lost answers": ("lost_responses_truthful", "lost_responses_tried"),
    "bad models refused": ("bad_models_refused", "bad_models_tried"),
    "healthy nights passed": ("healthy_passed", "healthy_tried"),
    "retention and rollback": ("retention_ok", "retention_tried"),
    "mutants of the model caught": ("mutants_caught", "mutants_tried"),
}
NOTHING_OF = {
    "the watcher": ("watcher_anomalies", "watcher_reads"),
    "the model's states": ("model_violations", "model_states"),
    "simulated schedules": ("simulated_violations", "simulated_schedules"),
}

# Each part has a watcher of its own, and a whole night is killed apart from the acts of publishing.
SUMMED = ("watcher_reads", "watcher_anomalies", "request_kills_tried", "request_kills_identical")


def write_part(part: str, figures: dict[str, Any], details: object) -> None:
    """`results/faults-<part>.json`, and `results/faults.json` anew. Prints the table."""
    report = {"figures": figures, "machine": machine(), "commit": commit(), "details": details}
    (RESULTS / f"faults-{part}.json").write_text(json.dumps(report, indent=1) + "\n")
    merge()
    print(table())


def merge() -> None:
    figures: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for path in sorted(RESULTS.glob("faults-*.json")):
        report = json.loads(path.read_text())
        summed = {
            name: figures.get(name, 0) + report["figures"].get(name, 0) for name in SUMMED if name in report["figures"]
        }
        figures |= report["figures"] | summed
        parts[path.stem.removeprefix("faults-")] = {name: report[name] for name in ("machine", "commit")}
    whole = {"figures": dict(sorted(figures.items())), "parts": parts}
    (RESULTS / "faults.json").write_text(json.dumps(whole, indent=1) + "\n")


def table() -> str:
    """Everything that was measured so far; a line that is short of its goal says so."""
    figures = json.loads((RESULTS / "faults.json").read_text())["figures"]
    lines = []
    for what, (well, tried) in PAIRS.items():
        if tried in figures:
            short = "" if figures[well] == figures[tried] else "   <- not all"
            lines.append(f"  {what:<32}{figures[well]:>12,} of {figures[tried]:,}{short}")
    for what, (wrong, seen) in NOTHING_OF.items():
        if seen in figures:
            short = "   <- not 0" if figures[wrong] else ""
            lines.append(f"  {what:<32}{figures[wrong]:>12,} wrong of {figures[seen]:,}{short}")
    known = {name for pair in (*PAIRS.values(), *NOTHING_OF.values()) for name in pair}
    lines += [f"  {name:<32}{value:>12,.6g}" for name, value in figures.items() if name not in known]
    return "\n".join(lines)


if __name__ == "__main__":
    merge()
    print(table())
