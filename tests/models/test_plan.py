"""The plan before a fit: counted memory and traffic decide how ranks share out the work."""

from dataclasses import replace

import pytest

from models.plan import CPU_THREAD, GPU, Size, cheapest, cost_of, needed_bytes

GOWALLA = Size(29_858, 40_981, 810_128, width=128, layers=2, batches_per_epoch=8, negatives=2048)
HUGE = Size(4_000_000, 1_500_000, 100_000_000, width=64, layers=3, batches_per_epoch=64, negatives=4096)
SPLITS = ("data", "columns", "rows")


def costs(size: Size, ranks: int, rates=CPU_THREAD) -> dict:  # type: ignore[no-untyped-def, type-arg]
    return {split: cost_of(split, size, ranks, rates) for split in SPLITS}


def test_a_fit_on_one_rank_moves_nothing_however_it_is_called() -> None:
    alone = costs(GOWALLA, 1)
    assert {cost.bytes_moved for cost in alone.values()} == {0}
    assert len({cost.bytes_of_rank for cost in alone.values()}) == 1


def test_data_moves_the_gradient_of_the_table_there_and_back() -> None:
    table = 4 * (29_858 + 40_981) * 128
    assert costs(GOWALLA, 2)["data"].bytes_moved == table
    assert costs(GOWALLA, 4)["data"].bytes_moved == int(1.5 * table)


def test_columns_move_what_the_batch_needs_and_rows_every_layer_as_well() -> None:
    two = costs(GOWALLA, 2)
    assert two["columns"].bytes_moved < 0.7 * two["data"].bytes_moved
    assert two["rows"].bytes_moved == two["columns"].bytes_moved + 2 * 2 * 4 * (29_858 + 40_981) * 128 // 2


def test_columns_halve_the_tables_and_rows_the_graph_too() -> None:
    two = costs(HUGE, 2)
    assert two["columns"].bytes_of_rank < 0.8 * two["data"].bytes_of_rank
    half_the_graph = (2 * 8 * HUGE.likes + 4 * HUGE.nodes) // 2
    assert costs(HUGE, 8)["columns"].bytes_of_rank < 0.5 * costs(HUGE, 8)["data"].bytes_of_rank
    assert two["columns"].bytes_of_rank - two["rows"].bytes_of_rank == half_the_graph


@pytest.mark.parametrize("rates", [CPU_THREAD, GPU])
def test_columns_are_chosen_where_all_fit(rates) -> None:  # type: ignore[no-untyped-def]
    chosen = cheapest(list(costs(GOWALLA, 2, rates).values()), 24 * 2**30, cpu_ranks=0)
    assert chosen is not None
    assert chosen.split == "columns"


def test_rows_are_chosen_where_nothing_else_fits_and_nothing_where_nothing_does() -> None:
    eight = costs(HUGE, 8)
    between = (eight["rows"].bytes_of_rank + eight["columns"].bytes_of_rank) / 2
    chosen = cheapest(list(eight.values()), between, cpu_ranks=0)
    assert chosen is not None
    assert chosen.split == "rows"
    assert cheapest(list(eight.values()), eight["rows"].bytes_of_rank - 1, cpu_ranks=0) is None


def test_on_the_cpu_the_start_must_fit_too() -> None:
    cost = cost_of("rows", HUGE, 64, CPU_THREAD)
    assert cost.bytes_of_start > cost.bytes_of_rank
    assert cheapest([cost], cost.bytes_of_rank, cpu_ranks=0) == cost
    assert cheapest([cost], cost.bytes_of_rank, cpu_ranks=1) is None


def test_the_formula_is_what_it_says() -> None:
    """Ten users, ten items, 100 likes, one column, one batch, by hand."""
    cost = cost_of("data", Size(10, 10, 100, width=1, layers=1, batches_per_epoch=1, negatives=5), 1, CPU_THREAD)
    table, graph, strips = 4 * 20, 2 * 100 * 8 + 4 * 20, 3 * 4 * 20
    step = 7 * 4 * (10 + 10) + 40 * 100 + 12 * 256 * 5
    assert cost.bytes_of_rank == 8 * table + graph + strips + step
    assert cost.bytes_of_start == 2 * graph + 9 * 4 * 20 * 17


def test_ranks_on_one_machine_share_its_memory_and_the_start_is_made_once() -> None:
    cost = cost_of("data", GOWALLA, 8, CPU_THREAD)
    first = max(cost.bytes_of_rank + cost.bytes_of_graph, cost.bytes_of_start)
    assert needed_bytes(cost, 8) == 7 * cost.bytes_of_rank + first
    assert needed_bytes(cost, 0) == cost.bytes_of_rank


def test_of_equals_the_simplest_is_chosen() -> None:
    alone = list(costs(GOWALLA, 1).values())
    chosen = cheapest(alone, 2**40, cpu_ranks=1)
    assert chosen is not None
    assert chosen.split == "data"


def test_more_of_anything_costs_more() -> None:
    before = cost_of("columns", GOWALLA, 2, CPU_THREAD)
    for larger in (
        replace(GOWALLA, likes=2 * GOWALLA.likes),
        replace(GOWALLA, width=256),
        replace(GOWALLA, items=2 * GOWALLA.items),
    ):
        after = cost_of("columns", larger, 2, CPU_THREAD)
        assert after.bytes_of_rank > before.bytes_of_rank
        assert after.seconds_of_step > before.seconds_of_step
