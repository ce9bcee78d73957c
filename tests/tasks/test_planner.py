"""What a night would take, told by footers alone, and what to set where it is too much."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.plan import main
from tasks.config import EvaluateConfig, IngestConfig, NightlyConfig, TrainConfig
from tasks.errors import InputTooLarge
from tasks.graph import pairs
from tasks.ingest import machine, planner
from tasks.ingest.digest import PIECE_ROWS_AT_MOST
from tasks.ingest.footers import ColumnHint, column_hint, ids_of_all, union_of
from tasks.ingest.inspection import EventFile, read_footer
from tasks.ingest.machine import memory_limits, this_machine
from tasks.ingest.opening import plan_run
from tasks.ingest.planner import GIB, Machine, Sizes, ensure_it_fits, plan_night, sizes_of
from tasks.ingest.readiness import Clock
from tasks.ingest.town import write_town
from tasks.store import open_store

NIGHT = date(2026, 11, 23)
LARGE = Machine(1 << 50, 1 << 50, threads=2)


def hint_of(path: Path, column: str) -> ColumnHint:
    with open(path, "rb") as stream:
        return column_hint(read_footer(stream, "a", num_bytes=path.stat().st_size), column)


def day(on: date, rows: int, users: int = 100_000, items: int = 20_000) -> EventFile:
    hints = {"user_id": ColumnHint(rows, users, rows, 1, users), "item_id": ColumnHint(rows, items, rows, 1, items)}
    return EventFile(f"events/dt={on}/a.parquet", "a", rows, datetime(2026, 11, 23, tzinfo=UTC), {}, {}, hints)


def days(count: int, rows: int) -> list[EventFile]:
    return [day(date.fromordinal(NIGHT.toordinal() - back), rows) for back in range(1, count + 1)]


# ---- how many ids


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("distinct", [40, 3_000, 90_000])
def test_a_footer_tells_about_how_many_ids_there_are(
    distinct: int, is_sorted: bool, is_text: bool, tmp_path: Path
) -> None:
    ids = np.random.default_rng(3).integers(0, distinct, 400_000)
    column = pl.Series("user_id", np.sort(ids) if is_sorted else ids) + 7_000_000
    path = tmp_path / "a.parquet"
    (("user-" + column.cast(pl.String)) if is_text else column).alias("user_id").to_frame().write_parquet(path)
    hint = hint_of(path, "user_id")
    told = ids_of_all([hint], 0)
    assert hint.rows == 400_000
    assert 0.7 * distinct < told < 1.5 * distinct


def test_ids_of_many_files_are_more_than_of_one_and_less_than_of_all_together() -> None:
    assert union_of([1_000], 0.5) == 1_000
    assert 1_000 < union_of([1_000] * 9, 0.5) < 9_000
    of_day = ColumnHint(5_000, 1_000, 1, 1, 1_500)
    assert ids_of_all([of_day] * 9, 0) == 1_500, "whole numbers are not more than their range is wide"
    assert ids_of_all([ColumnHint(5_000, 1_000, 1)] * 2, 3_000) == 3_000, "a registry knows better"


# ---- what it takes


def test_more_rows_and_wider_tables_take_more_and_no_row_is_read(tmp_path: Path) -> None:
    small, large = (plan_night(sizes_of(days(30, rows)), NightlyConfig(), LARGE) for rows in (1_000, 60_000))
    assert [stage.stage for stage in small.stages] == ["ingest", "graph", "train", "evaluate", "recommend", "judge"]
    for one, other in zip(small.stages, large.stages, strict=True):
        assert one.memory_bytes <= other.memory_bytes
        assert one.seconds <= other.seconds
    wide = plan_night(small.sizes, NightlyConfig(train=TrainConfig(width=512)), LARGE)
    assert wide.stages[2].memory_bytes > small.stages[2].memory_bytes
    no_rival = plan_night(small.sizes, NightlyConfig(evaluate=EvaluateConfig(filter_likes_at_most=0)), LARGE)
    assert no_rival.stages[3].memory_bytes < small.stages[3].memory_bytes


def test_a_graph_is_built_in_blocks_so_its_memory_hardly_grows_with_the_rows() -> None:
    assert planner.PAIRS_AT_ONCE == pairs.PAIRS_AT_ONCE, "the formula is of these blocks"
    few, many = (Sizes(rows, 100_000, 20_000, 0, rows // 30) for rows in (10_000_000, 100_000_000))
    graph_of_few, graph_of_many = (plan_night(sizes, NightlyConfig(), LARGE).stages[1] for sizes in (few, many))
    assert graph_of_many.memory_bytes < 1.3 * graph_of_few.memory_bytes
    assert graph_of_many.disk_bytes == 10 * graph_of_few.disk_bytes


def test_a_night_that_is_too_large_is_refused_with_a_window_that_fits() -> None:
    files, config = days(60, 2_000_000), NightlyConfig()
    machine = Machine(6 * GIB, 1 << 50, threads=2)
    plan = plan_night(sizes_of(files), config, machine)
    with pytest.raises(
        InputTooLarge, match=r"needs about \d+\.\d GiB of memory .*this machine has 6\.0 GiB"
    ) as refused:
        ensure_it_fits(plan, files, NIGHT, config, machine)
    longest = int(str(refused.value).split("ingest.window_days <= ")[1].split()[0].strip(","))

    def peak(window: int) -> int:
        kept = [file for file in files if ordinal_of(file) >= NIGHT.toordinal() - window - 1]
        return plan_night(sizes_of(kept), config, machine).largest.memory_bytes

    assert peak(longest) <= machine.memory_bytes < peak(longest + 1)


def ordinal_of(file: EventFile) -> int:
    return date.fromisoformat(file.key.split("dt=")[1][:10]).toordinal()


def test_too_wide_a_table_is_refused_with_a_width_that_fits() -> None:
    config = NightlyConfig(train=TrainConfig(width=1024))
    files = [day(NIGHT, 100_000, users=3_000_000, items=500_000)]
    machine = Machine(24 * GIB, 1 << 50, threads=2)
    plan = plan_night(sizes_of(files), config, machine)
    with pytest.raises(InputTooLarge, match=r"\(train\).*train\.width <= ") as refused:
        ensure_it_fits(plan, files, NIGHT, config, machine)
    width = int(str(refused.value).split("train.width <= ")[1].split(",")[0])
    narrower = NightlyConfig(train=TrainConfig(width=width))
    assert plan_night(plan.sizes, narrower, machine).largest.memory_bytes <= machine.memory_bytes


def test_too_little_disk_is_refused_too_and_enough_of_both_is_not() -> None:
    files, config = days(30, 1_000_000), NightlyConfig()
    small = Machine(1 << 50, GIB, threads=2)
    with pytest.raises(InputTooLarge, match=r"of disk, and 1\.0 GiB are free.*ingest\.window_days <= \d+"):
        ensure_it_fits(plan_night(sizes_of(files), config, small), files, NIGHT, config, small)
    ensure_it_fits(plan_night(sizes_of(files), config, LARGE), files, NIGHT, config, LARGE)


def test_a_refused_night_has_downloaded_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "store"))
    write_town(store)
    with pytest.raises(InputTooLarge, match="Nothing was read or started"):
        plan_run(
            store,
            NightlyConfig(ingest=IngestConfig()),
            as_of=None,
            scheduled_on=None,
            work_root=str(tmp_path / "work"),
            code_version="1",
            force=False,
            clock=Clock(read=lambda: datetime(2026, 11, 23, tzinfo=UTC), sleep=lambda seconds: None),
            machine=Machine(1 << 20, 1 << 50, threads=2),
        )
    assert not (tmp_path / "work").exists()


# ---- the machine, and the command


def test_a_container_s_limit_counts_also_one_of_a_group_around_it(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs/night\n")
    (tmp_path / "jobs/night").mkdir(parents=True)
    (tmp_path / "jobs/night/memory.max").write_text("max\n")
    (tmp_path / "jobs/memory.max").write_text("4294967296\n")
    assert list(memory_limits(own, tmp_path)) == [4 * GIB]
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1073741824\n")
    assert min(memory_limits(own, tmp_path)) == GIB
    assert this_machine(str(tmp_path / "not/there/yet")).disk_bytes > 0


def test_a_night_in_a_container_has_what_its_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = this_machine(str(tmp_path)).memory_bytes
    assert alone > GIB
    for limits, expected in (([], alone), ([GIB, 2 * GIB], GIB), ([1 << 60], alone)):
        monkeypatch.setattr(machine, "memory_limits", lambda own, cgroups, limits=limits: iter(limits))
        assert this_machine(str(tmp_path)).memory_bytes <= expected
    assert this_machine(str(tmp_path)).memory_bytes == machine.psutil.virtual_memory().total


def test_make_plan_prints_each_stage_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    write_town(store)
    before = [found.key for found in store.list("")]
    monkeypatch.setenv("NIGHTGRAPH_WORK", str(tmp_path / "work"))
    assert main(["--store", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"about 5\d,\d{3} rows, 1,\d{3} users, 1,\d{3} items", printed), "1,000 and 500 are there"
    for word in ("ingest", "graph", "train", "evaluate", "recommend", "judge", "the night", "here", "GiB"):
        assert word in printed
    assert [found.key for found in store.list("")] == before
    assert main(["--store", str(tmp_path / "store"), "--set", "ingest.prefixes=nowhere"]) == 1


def test_settings_of_a_plan_are_those_of_a_night(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(["--store", str(tmp_path), "--set", "train.widht=9"]) == 1
    assert "no setting train.widht" in " ".join(capsys.readouterr().out.split())


def test_a_hundred_million_events_are_told_to_take_what_they_took() -> None:
    """benchmarks/results/ingest.json: 1.40 GiB of the process that reads, beside the night's own."""
    sizes = Sizes(100_000_000, 1_000_000, 200_000, 2_000_000_000, 3_333_333)
    plan = plan_night(sizes, NightlyConfig(), LARGE)
    told = next(stage.memory_bytes for stage in plan.stages if stage.stage == "ingest")
    assert told == pytest.approx(planner.NIGHT_BYTES + 1.40 * GIB, rel=0.1)


def test_a_day_is_read_in_pieces_so_a_larger_one_takes_no_more_memory_to_read() -> None:
    def reading(rows: int) -> int:
        plan = plan_night(Sizes(rows, 1_000, 1_000, rows * 20, rows), NightlyConfig(), LARGE)
        return next(stage.memory_bytes for stage in plan.stages if stage.stage == "ingest")

    assert planner.PIECE_ROWS == PIECE_ROWS_AT_MOST
    assert reading(PIECE_ROWS_AT_MOST) == reading(4 * PIECE_ROWS_AT_MOST) > reading(PIECE_ROWS_AT_MOST // 2)
