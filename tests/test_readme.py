"""The README says what the code does: a reader who finds one wrong line trusts none."""

import json
import re
from pathlib import Path

from pydantic import BaseModel

from tasks import errors
from tasks.config import NightlyConfig

PROJECT_ROOT = Path(__file__).resolve().parents[1]
README = (PROJECT_ROOT / "README.md").read_text()


def settings_rows() -> list[str]:
    """The table's lines as the code has them; `python tests/test_readme.py` prints them."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for group, group_field in NightlyConfig.model_fields.items():
        for name, field in type(group_field.default).model_fields.items():
            default = _as_typed(field.default)
            rows.append(f"| `{group}.{name}` | {default} | {field.description} |".replace("|  |", "| (empty) |"))
    return rows


def _as_typed(value: object) -> str:
    """As it is written after `make nightly SET=`."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        return ",".join(name if name == what else f"{name}:{what}" for name, what in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    listed = README.split("<!-- settings:start -->")[1].split("<!-- settings:end -->")[0].strip().splitlines()
    assert listed == settings_rows()


def test_the_readme_names_every_error() -> None:
    names = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.NightError)
    }
    assert [name for name in names - {"NightError"} if f"`{name}`" not in README] == []


def test_the_readme_shows_the_very_lines_that_the_tests_run() -> None:
    snippets = re.findall(r"```python\n.*?```", (PROJECT_ROOT / "tests/tasks/reader_snippets.md").read_text(), re.S)
    assert snippets
    for snippet in snippets:
        assert snippet in README


def test_the_readme_uses_only_targets_that_make_knows() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (PROJECT_ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z]+(?:-[a-z]+)*)", README, re.M)) <= targets


def test_every_file_that_the_readme_names_is_there() -> None:
    for place in re.findall(r"\]\(([^)]+)\)|`((?:flows|tasks|models|deploy|docker|benchmarks)/[^`\s]*)`", README):
        path = place[0] or place[1]
        assert (PROJECT_ROOT / path).exists(), path


def test_the_measured_table_is_what_the_benchmark_wrote() -> None:
    figures = json.loads((PROJECT_ROOT / "benchmarks/results/night.json").read_text())["figures"]
    table = README.split("## Measured")[1].split("## What goes in")[0]
    for name, value in figures.items():
        if "recall" in name:
            assert f"{value:.3f}".lstrip("0") in table, name
        elif name.endswith("_seconds"):
            assert f"{value:.1f} s" in table, name
        elif name.endswith("_gib"):
            assert f"{value:.1f} GiB" in table, name


def training_rows() -> list[str]:
    """The training table as the benchmarks wrote its figures; `python tests/test_readme.py` prints it."""
    figures = json.loads((PROJECT_ROOT / "benchmarks/results/training.json").read_text())["figures"]

    def pair(prefix: str) -> str:
        return " | ".join(f"{figures[f'{prefix}_{m}_at_20']:.4f}".removeprefix("0") for m in ("recall", "ndcg"))

    epoch = figures["gowalla_authors_epoch_seconds"]
    best = f"{figures['gowalla_best_train_seconds']:.0f} s"
    return [
        "| | Recall@20 | NDCG@20 | training |",
        "|---|---:|---:|---:|",
        f"| **Gowalla, defaults (128 wide)** | **{pair('gowalla').replace(' | ', '** | **')}** "
        f"| {figures['gowalla_train_seconds']:.0f} s |",
        f"| Gowalla, 64 wide | {pair('gowalla_d64')} | {figures['gowalla_d64_train_seconds']:.0f} s |",
        f"| Gowalla, two fits of 256 side by side | {pair('gowalla_best')} | {best} |",
        f"| Gowalla, LightGCN as published | .1830 | .1554 | 1,000 epochs; one, timed beside ours: {epoch:.0f} s |",
        f"| Gowalla, graph filter, no training | {pair('gowalla_graph_filter')} | |",
        f"| Gowalla, item-kNN | {pair('gowalla_item_knn')} | |",
        f"| **MovieLens-1M, defaults** | **{pair('ml1m').replace(' | ', '** | **')}** "
        f"| {figures['ml1m_train_seconds']:.0f} s |",
        f"| MovieLens-1M, EASE | {pair('ml1m_ease')} | |",
        "| MovieLens-1M, UltraGCN as published | .2787 | .2642 | |",
    ]


def test_the_training_table_is_what_the_benchmarks_wrote() -> None:
    assert README.split("<!-- training:start -->")[1].split("<!-- training:end -->")[0].strip().splitlines() == (
        training_rows()
    )


def test_the_benchmark_page_has_every_figure_of_training_as_it_was_written() -> None:
    page = (PROJECT_ROOT / "benchmarks/README.md").read_text()
    figures = json.loads((PROJECT_ROOT / "benchmarks/results/training.json").read_text())["figures"]
    listed = page.split("<!-- training:start -->")[1].split("<!-- training:end -->")[0].strip().splitlines()
    assert listed == [f"| `{name}` | {value:.4g} |" for name, value in figures.items()]


def test_the_benchmark_page_has_the_figures_of_its_run_and_no_placeholder() -> None:
    page = (PROJECT_ROOT / "benchmarks/README.md").read_text()
    written = json.loads((PROJECT_ROOT / "benchmarks/results/night.json").read_text())
    assert written["commit"] in page
    assert not re.search(r"\b(TODO|TBD|XXX|[A-Z]{4,}X)\b", page)
    for night in written["nights"].values():
        for score in night["scores"]:
            if score["part"] == "test":
                assert f"{score['recall']['mean']:.4f}".lstrip("0") in page, score["model"]


CONTESTANTS = {
    "ours": "**Nightgraph**",
    "ours, 32 bits": "Nightgraph on a CPU that is no faster in 16 bits",
    "ours, torch path": "Nightgraph without numba",
    "faiss": "faiss, flat inner product (cannot leave out what they like)",
    "implicit": "implicit, `recommend`",
    "torch": "torch, product, mask and topk by hand",
    "bare product, numpy": "the product alone, numpy",
    "bare product, torch": "the product alone, torch",
}


def topk_rows() -> list[str]:
    """The top-K table as the benchmark wrote its seconds; `python tests/test_readme.py` prints it."""
    report = json.loads((PROJECT_ROOT / "benchmarks/results/topk.json").read_text())
    seconds = report["parts"]["speed"]["details"]["seconds"]
    trained, random = seconds["trained d 64"], seconds["random d 64"]
    rows = ["| | trained tables | times ours | random tables | times ours |", "|---|---:|---:|---:|---:|"]
    for name in sorted(trained, key=lambda name: trained[name]):
        rows.append(
            f"| {CONTESTANTS[name]} | {trained[name]:.2f} s | {trained[name] / trained['ours']:.1f} "
            f"| {random[name]:.2f} s | {random[name] / random['ours']:.1f} |"
        )
    return rows


def test_the_readmes_topk_table_is_what_the_benchmark_measured() -> None:
    listed = README.split("<!-- topk:start -->")[1].split("<!-- topk:end -->")[0].strip().splitlines()
    assert listed == topk_rows()


def test_the_benchmark_page_has_every_figure_of_topk_as_it_was_written() -> None:
    page = (PROJECT_ROOT / "benchmarks/README.md").read_text()
    figures = json.loads((PROJECT_ROOT / "benchmarks/results/topk.json").read_text())["figures"]
    listed = page.split("<!-- topk:start -->")[1].split("<!-- topk:end -->")[0].strip().splitlines()
    assert listed == [f"| `{name}` | {value:.4g} |" for name, value in figures.items()]


if __name__ == "__main__":
    print("\n".join([*settings_rows(), "", *training_rows(), "", *topk_rows()]))
