"""Shards: written once, recognised by hash, taken by ranks, and the same bytes whatever happened on the way."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from models.selection import noted_bytes
from models.topk import RANKED_AT_ONCE
from tasks.config import RecommendConfig
from tasks.contracts import Fitted, Graph, Recommendations
from tasks.errors import DiskFull, ModelNotFinite, NightError, RanksLost, RunConfigError
from tasks.recommend import everyone
from tasks.recommend.everyone import recommend_everyone
from tasks.recommend.lists import Sources
from tasks.recommend.memory import BYTES_PER_GROUP_ITEM, ITEM_BYTES, MIB, Memory, plan_memory
from tasks.recommend.shards import ROW_GROUP_ROWS, cut_into_shards, row_group_rows, write_rows
from tasks.recommend.task import in_words
from tasks.recommend.worker import Progress, Spec, write_shards
from tests.worlds import build_graph_of, fit_here, graph_of_random_likes, two_taste_world

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def settings(**changes: Any) -> RecommendConfig:
    """Config does not allow so small shards; the functions do."""
    return RecommendConfig.model_construct(**({"k": 10, "users_per_shard": 10} | changes))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """40 people: 4 shards of 10."""
    return build_graph_of(two_taste_world().seen, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def fitted(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_here(graph, tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def undisturbed(graph: Graph, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Recommendations:
    return recommend_everyone(graph, fitted, settings(), tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def folder(undisturbed: Recommendations, tmp_path: Path) -> Path:
    """A finished folder to damage."""
    shutil.copytree(undisturbed.folder, tmp_path / "lists")
    return tmp_path / "lists"


def bytes_of(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*"))}


def spec_of(graph: Graph, fitted: Fitted, folder: Path, **changes: Any) -> Spec:
    folder.mkdir(exist_ok=True)
    sources = Sources.of(graph, fitted, settings(), None, None)
    told: dict[str, Any] = {
        "folder": str(folder),
        "key": "tonight",
        "users_per_shard": 10,
        "list_length": 10,
        "block_bytes": 2**20,
        "threads": 1,
        "sources": sources,
    }
    return Spec(**(told | changes))


# ---- cuts


def test_every_person_stands_in_one_shard_in_order() -> None:
    shards = cut_into_shards(25, 10)
    assert [(shard.name, shard.start, shard.stop) for shard in shards] == [
        ("part-00000", 0, 10),
        ("part-00001", 10, 20),
        ("part-00002", 20, 25),
    ]
    assert cut_into_shards(0, 10) == []


@pytest.mark.parametrize("list_length", [1, 7, 20, 100_000, 300_000])
def test_a_row_group_holds_whole_lists(list_length: int) -> None:
    rows = row_group_rows(list_length)
    assert rows % list_length == 0
    assert rows <= max(ROW_GROUP_ROWS, list_length)


def test_one_users_list_is_found_by_reading_one_row_group(tmp_path: Path) -> None:
    people, k = 12_000, 20
    rows = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(people), k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), people),
        }
    )
    write_rows(rows, tmp_path / "part.parquet", list_length=k)
    footer = pq.read_metadata(tmp_path / "part.parquet")
    ranges = [footer.row_group(group).column(0).statistics for group in range(footer.num_row_groups)]
    assert [(found.min, found.max) for found in ranges] == [(0, 6552), (6553, 11_999)]
    again = tmp_path / "again.parquet"
    in_pieces = pl.concat([rows[start : start + 777] for start in range(0, len(rows), 777)], rechunk=False)
    write_rows(in_pieces, again, list_length=k)
    assert again.read_bytes() == (tmp_path / "part.parquet").read_bytes(), "the bytes do not follow the blocks"


# ---- killed


def test_a_night_killed_at_every_boundary_of_every_shard_ends_with_the_same_bytes(
    graph: Graph, fitted: Fitted, tmp_path: Path
) -> None:
    calm = spec_of(graph, fitted, tmp_path / "calm")
    write_shards(calm)
    spec = spec_of(graph, fitted, tmp_path / "killed")
    spec.write(tmp_path / "killed.json")
    finished = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "tests/tasks/killed_shards.py"), str(tmp_path / "killed.json")],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    told = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(told) == 4 * 3 + 1
    for one in told[:-1]:
        shard, step = one["boundary"]
        assert one["code"] == -signal.SIGKILL
        done = [f"part-{number:05d}" for number in range(shard)]
        assert one["sealed_before"] == done, "what was not sealed does not count"
        assert one["computed"] == [shard], f"{step}: it goes on at the first missing shard, and computes no other"
    assert told[-1] | {"boundary": None} == {
        "boundary": None,
        "code": 0,
        "sealed_before": [f"part-{number:05d}" for number in range(4)],
        "computed": [],
    }
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "calm")


def test_a_rerun_of_finished_shards_opens_nothing(
    graph: Graph, fitted: Fitted, folder: Path, undisturbed: Recommendations, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    monkeypatch.setattr("tasks.recommend.worker.Everybody", None)
    again = recommend_everyone(graph, fitted, settings(), folder, on_progress=told.append)
    assert again.fingerprint == undisturbed.fingerprint
    assert (told[-1].done, told[-1].reused, told[-1].people) == (40, 40, 40)


# ---- what is no shard of tonight


def _truncate(folder: Path, _: Path) -> None:
    path = folder / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def _flip_a_byte(folder: Path, _: Path) -> None:
    content = bytearray((folder / "part-00002.parquet").read_bytes())
    content[100] ^= 1
    (folder / "part-00002.parquet").write_bytes(content)


def _take_anothers_rows(folder: Path, _: Path) -> None:
    shutil.copy(folder / "part-00001.parquet", folder / "part-00002.parquet")


def _duplicate(folder: Path, _: Path) -> None:
    for suffix in ("parquet", "json"):
        shutil.copy(folder / f"part-00001.{suffix}", folder / f"part-00002.{suffix}")


def _take_another_nights(folder: Path, other: Path) -> None:
    for suffix in ("parquet", "json"):
        shutil.copy(other / f"part-00002.{suffix}", folder / f"part-00002.{suffix}")


def _remove_the_rows(folder: Path, _: Path) -> None:
    (folder / "part-00002.parquet").unlink()


def _remove_the_sidecar(folder: Path, _: Path) -> None:
    (folder / "part-00002.json").unlink()


def _leave_half_of_it(folder: Path, _: Path) -> None:
    content = (folder / "part-00002.parquet").read_bytes()
    for name in ("part-00002.parquet", "part-00002.json"):
        (folder / name).unlink()
    (folder / "part-00002.parquet.tmp").write_bytes(content[: len(content) // 2])


def _cut_the_sidecar(folder: Path, _: Path) -> None:
    path = folder / "part-00002.json"
    path.write_text(path.read_text()[:50])


def _edit_the_sidecar(folder: Path, _: Path) -> None:
    path = folder / "part-00002.json"
    told = json.loads(path.read_text())
    told["body"]["counts"]["rows_by_tier"]["graph"] += 1
    path.write_text(json.dumps(told))


DAMAGES: list[tuple[Callable[[Path, Path], None], str]] = [
    (_truncate, r"it has [\d,]+ bytes and was written with [\d,]+"),
    (_flip_a_byte, "it has other bytes than it was written with"),
    (_take_anothers_rows, "it has (other bytes than it|[0-9,]+ bytes and)"),
    (_duplicate, r"it is shard 1 under another name \(people 10 to 19\)"),
    (_take_another_nights, "it is of another night"),
    (_remove_the_rows, "its rows are gone"),
    (_remove_the_sidecar, "it has no sidecar"),
    (_leave_half_of_it, "it is half written"),
    (_cut_the_sidecar, "its sidecar cannot be read"),
    (_edit_the_sidecar, "its sidecar is not what was written"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGES, ids=[damage.__name__.strip("_") for damage, _ in DAMAGES])
def test_a_shard_that_is_not_tonights_is_named_and_computed_again_and_no_other_is(
    damage: Callable[[Path, Path], None],
    why: str,
    graph: Graph,
    fitted: Fitted,
    folder: Path,
    undisturbed: Recommendations,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = tmp_path / "other night"
    other.mkdir()
    recommend_everyone(graph, fitted, settings(k=9), other)
    damage(folder, other)
    untouched = {
        path.name: path.stat().st_mtime_ns for path in folder.glob("part-*") if not path.name.startswith("part-00002")
    }
    with caplog.at_level("WARNING", logger="nightgraph.recommend"):
        again = recommend_everyone(graph, fitted, settings(), folder)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert re.search(f"part-00002: .*{why}.*; computing it again", warned[0])
    assert again.fingerprint == undisturbed.fingerprint
    assert bytes_of(folder) == bytes_of(undisturbed.folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in untouched} == untouched


def test_two_shards_that_changed_places_are_both_computed_again(
    graph: Graph, fitted: Fitted, folder: Path, undisturbed: Recommendations, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("parquet", "json"):
        one, two, aside = (folder / f"{name}.{suffix}" for name in ("part-00000", "part-00003", "aside"))
        one.rename(aside)
        two.rename(one)
        aside.rename(two)
    with caplog.at_level("WARNING", logger="nightgraph.recommend"):
        again = recommend_everyone(graph, fitted, settings(), folder)
    assert [record.getMessage()[:10] for record in caplog.records] == ["part-00000", "part-00003"]
    assert again.fingerprint == undisturbed.fingerprint


def test_a_part_beyond_the_last_shard_is_removed(
    graph: Graph, fitted: Fitted, folder: Path, undisturbed: Recommendations, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("parquet", "json"):
        shutil.copy(folder / f"part-00003.{suffix}", folder / f"part-00004.{suffix}")
    with caplog.at_level("WARNING", logger="nightgraph.recommend"):
        recommend_everyone(graph, fitted, settings(), folder)
    assert "part-00004.parquet: there is no such shard tonight" in caplog.text
    assert bytes_of(folder) == bytes_of(undisturbed.folder)


def test_what_is_counted_does_not_depend_on_who_counted_it(
    graph: Graph, fitted: Fitted, folder: Path, undisturbed: Recommendations
) -> None:
    (folder / "part-00001.json").unlink()
    again = recommend_everyone(graph, fitted, settings(), folder)
    one = recommend_everyone(graph, fitted, settings(users_per_shard=1000), folder)
    for name in ("users", "rows", "rows_by_tier", "users_without_a_trained_row", "short_lists"):
        assert getattr(again, name) == getattr(undisturbed, name) == getattr(one, name), name
    assert (len(undisturbed.parts), len(one.parts)) == (4, 1)


# ---- ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_more_ranks_write_the_same_bytes(
    ranks: int, graph: Graph, fitted: Fitted, undisturbed: Recommendations, tmp_path: Path
) -> None:
    told: list[Progress] = []
    several = recommend_everyone(graph, fitted, settings(ranks=ranks), tmp_path, on_progress=told.append)
    assert bytes_of(tmp_path) == bytes_of(undisturbed.folder)
    assert several.fingerprint == undisturbed.fingerprint
    assert (told[-1].done, told[-1].people) == (40, 40)


@pytest.mark.parametrize(("threads", "block_bytes"), [(1, 1), (2, 2**20), (5, 2**24)])
def test_threads_and_blocks_change_no_byte(
    threads: int, block_bytes: int, graph: Graph, fitted: Fitted, tmp_path: Path
) -> None:
    write_shards(spec_of(graph, fitted, tmp_path / "one"))
    write_shards(spec_of(graph, fitted, tmp_path / "other", threads=threads, block_bytes=block_bytes))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "other")


def test_ranks_run_by_hand_under_plain_torchrun(graph: Graph, fitted: Fitted, tmp_path: Path) -> None:
    write_shards(spec_of(graph, fitted, tmp_path / "here"))
    spec_of(graph, fitted, tmp_path / "there").write(tmp_path / "spec.json")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *command, "-m", "tasks.recommend.worker", str(tmp_path / "spec.json")],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")


def test_a_rank_knows_neither_prefect_nor_object_storage() -> None:
    program = (
        "import sys, tasks.recommend.worker; "
        "print([name for name in ('prefect', 's3fs', 'tasks.store', 'tasks.ingest') if name in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Fitted]:
    """Enough shards to be disturbed in the middle of them."""
    graph = graph_of_random_likes(tmp_path_factory.mktemp("graph"), users=4000, items=200, share=0.05)
    return graph, fit_here(graph, tmp_path_factory.mktemp("fit"))


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status", "cmdline"]):
        ours = str(folder / "spec.json") in (process.info["cmdline"] or [])
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_killed_rank_is_replaced_and_costs_no_byte(longer: tuple[Graph, Fitted], tmp_path: Path) -> None:
    graph, fitted = longer
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    recommend_everyone(graph, fitted, settings(users_per_shard=5), calm)
    victims: list[psutil.Process] = []

    def kill(progress: Progress) -> None:
        if not victims and progress.done:
            victims.extend(p for p in processes_of(killed) if "models.distributed" not in p.cmdline())
            victims[-1].send_signal(signal.SIGKILL)

    recommend_everyone(graph, fitted, settings(ranks=2, users_per_shard=5), killed, on_progress=kill)
    assert len(victims) == 2
    assert "ended first, with exit code -9 (SIGKILL)" in (killed / "ranks.log").read_text()
    assert bytes_of(killed) == bytes_of(calm)
    assert processes_of(killed) == []


def test_ranks_that_keep_dying_end_the_night_by_name_and_leave_what_is_finished(
    longer: tuple[Graph, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, fitted = longer
    monkeypatch.setattr(everyone, "RELAUNCHES", 0)

    def kill(progress: Progress) -> None:
        if progress.done:
            for process in processes_of(tmp_path):
                process.send_signal(signal.SIGKILL)

    with pytest.raises(RanksLost, match=r"(?s)recommending on 2 ranks ended without a result.*first missing shard"):
        recommend_everyone(graph, fitted, settings(ranks=2, users_per_shard=5), tmp_path, on_progress=kill)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("part-*.json"))


def test_whoever_kills_the_night_kills_its_ranks_and_the_next_one_goes_on(
    longer: tuple[Graph, Fitted], tmp_path: Path
) -> None:
    graph, fitted = longer
    program = (
        "import sys; from pathlib import Path; from pydantic import TypeAdapter; "
        "from tasks.contracts import Fitted, Graph; from tasks.recommend.everyone import recommend_everyone; "
        "from tests.tasks.test_shards import settings; "
        "graph, fitted = (TypeAdapter(kind).validate_json(text) for kind, text in zip((Graph, Fitted), sys.argv[1:])); "
        "recommend_everyone(graph, fitted, settings(ranks=2, users_per_shard=5), Path(sys.argv[3]))"
    )
    told = [TypeAdapter(Graph).dump_json(graph).decode(), TypeAdapter(Fitted).dump_json(fitted).decode()]
    night = subprocess.Popen([sys.executable, "-c", program, *told, str(tmp_path)], cwd=PROJECT_ROOT)
    try:
        _wait_for(lambda: len(list(tmp_path.glob("part-*.json"))) > 20)
    finally:
        night.kill()
        night.wait()
    _wait_for(lambda: not processes_of(tmp_path), at_most_s=5)
    sealed = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.json")}
    assert len(sealed) < 800
    again = recommend_everyone(graph, fitted, settings(users_per_shard=5), tmp_path)
    assert len(again.parts) == 800
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in sealed} == sealed


def _wait_for(condition: Callable[[], bool], *, at_most_s: float = 120) -> None:
    until = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_a_cancelled_night_leaves_no_ranks(longer: tuple[Graph, Fitted], tmp_path: Path) -> None:
    graph, fitted = longer

    def cancel(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_everyone(graph, fitted, settings(ranks=2), tmp_path, on_progress=cancel)
    assert processes_of(tmp_path) == []


# ---- faults


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_is_named_nothing_half_written_is_left_and_finished_shards_stay(
    ranks: int, graph: Graph, fitted: Fitted, undisturbed: Recommendations, tmp_path: Path
) -> None:
    (tmp_path / "part-00003.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError if ranks == 1 else DiskFull) as full:
        recommend_everyone(graph, fitted, settings(ranks=ranks), tmp_path)
    if ranks == 1:
        assert full.value.errno == errno.ENOSPC  # type: ignore[attr-defined]  # its stage gives it the name
    else:
        assert "filled up while shards were written. Nothing was published" in str(full.value)
    left = {path.name for path in tmp_path.glob("part-*")}
    assert {"part-00003.parquet", "part-00003.json", "part-00003.parquet.tmp"}.isdisjoint(left)
    assert "part-00001.json" in left
    assert recommend_everyone(graph, fitted, settings(), tmp_path).fingerprint == undisturbed.fingerprint


@pytest.fixture
def broken(fitted: Fitted, tmp_path: Path) -> Fitted:
    tables = load_file(fitted.served_path)
    tables["user_UD"][[3, 4, 17], 0] = torch.nan
    tables["item_ID"][59, -1] = torch.inf
    save_file(tables, tmp_path / "broken.safetensors")
    return replace(fitted, served_path=str(tmp_path / "broken.safetensors"), fingerprint="broken")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_without_numbers_is_refused_with_how_many_rows_of_which_table(
    ranks: int, graph: Graph, broken: Fitted, tmp_path: Path
) -> None:
    found = r"1 of the 60 rows of item_ID, 3 of the 40 rows of user_UD"
    with pytest.raises(ModelNotFinite, match=found) as refused:
        recommend_everyone(graph, broken, settings(ranks=ranks), tmp_path)
    assert not refused.value.worth_a_retry
    assert not list(tmp_path.glob("part-*"))


def test_more_than_the_catalogue_is_given_in_shards_too(graph: Graph, fitted: Fitted, tmp_path: Path) -> None:
    everything = recommend_everyone(graph, fitted, settings(k=1000), tmp_path)
    assert everything.short_lists == 40
    assert everything.rows == 40 * (60 - 15)


def test_whatever_a_rank_names_has_its_name_here() -> None:
    kind = everyone._named(Path("folder"), "ModelNotFinite", "said")
    assert isinstance(kind, ModelNotFinite)
    assert str(kind) == "said"
    assert issubclass(RanksLost, NightError)
    assert RanksLost.worth_a_retry


# ---- progress


def test_progress_says_how_fast_and_how_long() -> None:
    words = in_words(Progress(done=3000, reused=1000, people=5000, seconds=4.0))
    assert words == "3,000 of 5,000 users, 500 a second, 4 s left (1,000 finished earlier)"
    assert in_words(Progress(done=0, reused=0, people=5000, seconds=0.0)) == "0 of 5,000 users"


# ---- memory


def test_too_small_a_cap_says_the_least_that_is_enough(graph: Graph, fitted: Fitted) -> None:
    sources = Sources.of(graph, fitted, settings(), None, None)
    with pytest.raises(RunConfigError, match=r"memory_mib is 100, and [\d,]+ is the least that is enough") as refused:
        plan_memory(sources, settings(memory_mib=100), threads=2)
    least = int(re.findall(r"and ([\d,]+) is the least", str(refused.value))[0].replace(",", ""))
    assert plan_memory(sources, settings(memory_mib=least), threads=2).peak_bytes <= least * MIB
    with pytest.raises(RunConfigError):
        plan_memory(sources, settings(memory_mib=least - 1), threads=2)


@pytest.mark.parametrize(("memory_mib", "is_enough"), [(600, False), (1024, False), (2048, True), (8192, True)])
@pytest.mark.parametrize(("people", "items", "k"), [(1_000_000, 100_000, 20), (10_000, 1_000_000, 100)])
def test_plans_keep_to_the_cap_and_cuts_do_not_follow_threads(
    memory_mib: int, is_enough: bool, people: int, items: int, k: int, tmp_path: Path
) -> None:
    sources = sources_of_size(tmp_path, people=people, items=items)
    whole = settings(k=k, users_per_shard=10_000_000, memory_mib=memory_mib)
    if not is_enough:
        with pytest.raises(RunConfigError, match=rf"memory_mib is {memory_mib:,}, and 1,[236]\d\d is the least"):
            plan_memory(sources, whole, threads=1)
        return
    plans = [plan_memory(sources, whole, threads=threads) for threads in (1, 8)]
    assert all(plan.peak_bytes <= memory_mib * MIB for plan in plans)
    assert plans[0].users_per_shard == plans[1].users_per_shard


def test_the_memory_formula_counts_rules_copies_outputs_and_threads(tmp_path: Path) -> None:
    people, items = 10_000, 200_000
    sources = sources_of_size(tmp_path, people=people, items=items)
    lists = settings(k=20, memory_mib=8192, similar_items=0)

    def plan(threads: int = 1, num_segments: int = 0, **changes: Any) -> Memory:
        of = replace(sources, num_segments=num_segments)
        return plan_memory(of, lists.model_copy(update=changes), threads=threads)

    (tmp_path / "twice").mkdir()
    twice = plan_memory(sources_of_size(tmp_path / "twice", people=people, items=2 * items), lists, threads=1)
    of_an_item = 65 * 4 + (72 * 4 + 16) + 3 * 8 + ITEM_BYTES + BYTES_PER_GROUP_ITEM  # the scan's copy is padded
    assert twice.fixed_bytes - plan().fixed_bytes == pytest.approx(items * of_an_item, abs=1000)
    assert plan(num_segments=3).fixed_bytes - plan().fixed_bytes == 3 * items * BYTES_PER_GROUP_ITEM
    embedded = plan(similar_items=50, embeddings=True).fixed_bytes
    assert embedded > plan(similar_items=50).fixed_bytes > plan().fixed_bytes
    one, two = plan().threads_bytes, plan(threads=2).threads_bytes
    assert two == 2 * one >= 2 * noted_bytes(40)
    assert plan(at_most_per_category=2).threads_bytes - one == 64 * RANKED_AT_ONCE
    assert plan().block_bytes * 4 <= plan().all_blocks_bytes, "products, lists, and twice reasons"

    def least(threads: int) -> int:
        with pytest.raises(RunConfigError) as refused:
            plan(threads, memory_mib=1)
        return int(re.findall(r"and ([\d,]+) is the least", str(refused.value))[0].replace(",", ""))

    assert least(65) - least(1) == pytest.approx(64 * one / MIB, abs=1)


def sources_of_size(folder: Path, *, people: int, items: int) -> Sources:
    """Files of the right sizes, with holes for content."""
    for name, count in (("user_ids", people), ("item_ids", items)):
        pl.DataFrame({name: np.arange(count)}).write_parquet(folder / f"{name}.parquet")
    for name in ("liked_all", "seen_all"):
        with open(folder / f"{name}.indices.npy", "wb") as file:
            file.truncate(people * 20 * 4)
    tables, at = {}, 0
    for name, rows in (("user_UD", people), ("item_ID", items)):
        tables[name] = {"dtype": "F32", "shape": [rows, 65], "data_offsets": [at, at + rows * 65 * 4]}
        at += rows * 65 * 4
    header = json.dumps(tables).encode()
    with open(folder / "served.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    return Sources(
        graph_folder=str(folder),
        served_path=str(folder / "served.safetensors"),
        tables_folder="",
        table_rows={},
        as_of="2026-11-24",
        settings={},
        num_people=people,
        num_items=items,
        num_segments=0,
        num_folded=0,
    )


def test_a_process_that_recommends_stays_under_its_cap(fitted: Fitted, tmp_path: Path) -> None:
    """20,000 people and 10,000 items, in shards as large as the cap allows."""
    graph = graph_of_random_likes(tmp_path / "graph", users=20_000, items=10_000, share=0.001)
    torch.manual_seed(1)
    tables = {
        "user_UD": torch.randn(graph.num_users, 65),
        "item_ID": torch.randn(graph.num_items, 65),
        "hop_ID": torch.randn(graph.num_items, 64),
        "scale_U": torch.rand(graph.num_users),
    }
    save_file(tables, tmp_path / "served.safetensors")
    asked = settings(k=50, users_per_shard=1_000_000, memory_mib=750)
    sources = Sources.of(graph, replace(fitted, served_path=str(tmp_path / "served.safetensors")), asked, None, None)
    plan = plan_memory(sources, asked, threads=2)
    (tmp_path / "lists").mkdir()
    spec = Spec(str(tmp_path / "lists"), "k", plan.users_per_shard, plan.list_length, plan.block_bytes, 2, sources)
    spec.write(tmp_path / "spec.json")
    program = (
        "import sys; from tasks.recommend.worker import main; main(sys.argv[1]); "
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "spec.json")],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "2", "POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    peak = int(finished.stdout.split()[-1]) * 1024  # getrusage would start at the peak of whoever started it
    print(f"peak {peak / MIB:.0f} MiB, {plan.in_words()}")
    assert peak <= plan.peak_bytes <= 750 * MIB
