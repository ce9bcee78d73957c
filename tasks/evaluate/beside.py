"""Whether what stands beside the lists is whole: known ids in order, finite numbers, no item near itself.

As with the lists, the finished files are read, one at a time, and a fault cannot be overridden.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl

from tasks.contracts import Check, Output


def check_outputs(outputs: tuple[Output, ...], user_ids: pl.Series, item_ids: pl.Series) -> list[Check]:
    """One check a table, which names its faults and counts their rows."""
    ids = {"user_id": user_ids, "item_id": item_ids}
    checks = []
    for output in outputs:
        faults: dict[str, int] = {}
        last: Any = None
        for file in output.files:
            rows = pl.read_parquet(file.path)
            own = rows.to_series(0)
            for name, count in (*_faults_of(rows, ids[own.name], item_ids), _between_files(last, own)):
                faults[name] = faults.get(name, 0) + count
            last = own[-1] if len(own) else last
        found = "; ".join(f"{count:,} {name}" for name, count in faults.items() if count)
        num_rows = sum(file.rows for file in output.files)
        checks.append(Check(output.name, passed=not found, detail=found or f"{num_rows:,} rows, no fault"))
    return checks


def _between_files(last: Any, own: pl.Series) -> tuple[str, int]:
    return "files out of order", int(last is not None and len(own) > 0 and own[0] <= last)


def _faults_of(rows: pl.DataFrame, ids: pl.Series, item_ids: pl.Series) -> Iterator[tuple[str, int]]:
    own = pl.col(rows.columns[0])
    yield "rows with an unknown id", rows.filter(~own.is_in(ids.implode()) | own.is_null()).height
    if "embedding" in rows.columns:
        finite = pl.col("embedding").arr.to_list().list.eval(pl.element().is_finite()).list.all()
        yield "vectors with numbers that are none", rows.filter(~finite.fill_null(value=False)).height
        yield "ids out of order", rows.select((own <= own.shift(1)).sum()).item()
        return
    near, rank, score = pl.col("similar_item_id"), pl.col("rank"), pl.col("score")
    yield "rows with an unknown id", rows.filter(~near.is_in(item_ids.implode()) | near.is_null()).height
    yield "items near themselves", rows.filter(own == near).height
    yield "items that stand twice near one", len(rows) - rows.select(own, near).n_unique()
    yield "scores that are not finite", rows.filter(~score.is_finite().fill_null(value=False)).height
    begins = (own != own.shift(1)).fill_null(value=True)
    of_equals_the_later_id = (score == score.shift(1)) & (near < near.shift(1))
    out_of_order = (
        pl.when(begins)
        .then((rank != 1) | (own < own.shift(1)).fill_null(value=False))
        .otherwise((rank != rank.shift(1) + 1) | (score > score.shift(1)) | of_equals_the_later_id)
    )
    yield "rows out of order", rows.filter(out_of_order.fill_null(value=True)).height
