"""Planted faults in what stands beside the lists: each is named, and none goes live."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tasks.contracts import Output, OutputFile
from tasks.evaluate.beside import check_outputs

USERS, ITEMS = pl.Series(["ann", "bob", "cy"]), pl.Series(["a", "b", "c", "d"])


LATER_FIRST = ["b", "c", "d", "a", "d", "c", "a", "b", "d", "b", "a", "c"]


def similar() -> pl.DataFrame:
    rows = [
        (item, rank, other, 1.0 - 0.1 * rank)
        for item in ITEMS
        for rank, other in enumerate((other for other in ITEMS if other != item), start=1)
    ]
    schema = {"item_id": pl.String, "rank": pl.Int32, "similar_item_id": pl.String, "score": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def vectors() -> pl.DataFrame:
    values = pl.Series([[1.0, 2.0]] * 3, dtype=pl.Array(pl.Float32, 2))
    return pl.DataFrame({"user_id": USERS, "embedding": values})


def verdict(folder: Path, name: str, frames: list[pl.DataFrame]) -> tuple[bool, str]:
    files = []
    for number, frame in enumerate(frames):
        frame.write_parquet(folder / f"{number}.parquet")
        files.append(OutputFile(str(folder / f"{number}.parquet"), len(frame), 0, ""))
    (check,) = check_outputs((Output(name, tuple(files)),), USERS, ITEMS)
    return check.passed, check.detail


def test_whole_tables_pass_in_one_file_in_two_and_without_rows(tmp_path: Path) -> None:
    assert verdict(tmp_path, "similar_items", [similar()]) == (True, "12 rows, no fault")
    assert verdict(tmp_path, "similar_items", [similar()[:6], similar()[6:]]) == (True, "12 rows, no fault")
    assert verdict(tmp_path, "similar_items", [similar().clear()]) == (True, "0 rows, no fault")
    assert verdict(tmp_path, "user_embeddings", [vectors()[:1], vectors()[1:]]) == (True, "3 rows, no fault")
    assert check_outputs((), USERS, ITEMS) == []


def changed(**columns: pl.Expr) -> Callable[[pl.DataFrame], list[pl.DataFrame]]:
    """The fifth row gets other values."""
    fifth = pl.int_range(pl.len()) == 4
    return lambda rows: [
        rows.with_columns(
            pl.when(fifth).then(value).otherwise(pl.col(name)).alias(name) for name, value in columns.items()
        )
    ]


FAULTS: dict[str, tuple[Callable[[pl.DataFrame], list[pl.DataFrame]], str]] = {
    "a stranger": (changed(item_id=pl.lit("zz")), "1 rows with an unknown id"),
    "a strange neighbour": (changed(similar_item_id=pl.lit("zz")), "1 rows with an unknown id"),
    "nobody": (changed(similar_item_id=pl.lit(None, pl.String)), "1 rows with an unknown id"),
    "itself": (changed(similar_item_id=pl.col("item_id")), "1 items near themselves"),
    "one twice": (changed(similar_item_id=pl.lit("a")), "1 items that stand twice near one"),
    "no number": (changed(score=pl.lit(float("nan"))), "1 scores that are not finite"),
    "a better one behind": (changed(score=pl.lit(5.0)), "1 rows out of order"),
    "equal scores, the later id first": (
        lambda rows: [rows.with_columns(score=0.5, similar_item_id=pl.Series(LATER_FIRST))],
        "2 rows out of order",
    ),
    "a gap in the ranks": (changed(rank=pl.lit(7)), "rows out of order"),
    "a missing row": (lambda rows: [rows.filter(pl.int_range(pl.len()) != 4)], "1 rows out of order"),
    "a missing first row": (lambda rows: [rows[1:]], "1 rows out of order"),
    "rows backwards": (lambda rows: [rows.sort("item_id", descending=True, maintain_order=True)], "rows out of order"),
    "files backwards": (lambda rows: [rows[6:], rows[:6]], "1 files out of order"),
    "an item in two files": (lambda rows: [rows[:6], rows[3:]], "1 files out of order"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_similar_items_is_named(fault: str, tmp_path: Path) -> None:
    plant, says = FAULTS[fault]
    passed, detail = verdict(tmp_path, "similar_items", plant(similar()))
    assert not passed
    assert says in detail


def test_each_fault_of_embeddings_is_named(tmp_path: Path) -> None:
    infinite = vectors().with_columns(
        embedding=pl.Series([[1.0, 2.0], [1.0, float("inf")], [float("nan"), 0.0]], dtype=pl.Array(pl.Float32, 2))
    )
    assert verdict(tmp_path, "user_embeddings", [infinite]) == (False, "2 vectors with numbers that are none")
    assert verdict(tmp_path, "user_embeddings", [vectors()[::-1]]) == (False, "2 ids out of order")
    assert verdict(tmp_path, "user_embeddings", [vectors(), vectors()[:1]]) == (False, "1 files out of order")
    stranger = vectors().with_columns(user_id=pl.Series(["ann", "bob", "zoe"]))
    assert verdict(tmp_path, "user_embeddings", [stranger]) == (False, "1 rows with an unknown id")
