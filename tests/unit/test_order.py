"""The order of samples: the same for the same place in a run, whatever came before and however many share the work."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.data.order import batch_count, batches, epoch_order, stream


def test_this_order_stays_what_it_is() -> None:
    """Resuming on another machine, or with another NumPy, depends on these very figures."""
    assert epoch_order(0, 0, 8).tolist() == [7, 1, 2, 0, 3, 4, 6, 5]
    assert epoch_order(7, 3, 8).tolist() == [2, 3, 0, 1, 6, 7, 4, 5]


@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    order = epoch_order(seed, epoch, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(seed, epoch, count))


def test_nobody_can_spoil_the_order_for_others() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        next(batches(0, 0, 8, 4))[0] = 3


def test_batches_one_by_one_cost_no_order_each() -> None:
    """As a run takes them that may resume at any of them."""
    started = time.perf_counter()
    one_by_one = [next(batches(5, 0, 1_000_000, 64, start=start)) for start in range(100)]
    assert time.perf_counter() - started < 5  # ordering them a hundred times takes over ten seconds
    np.testing.assert_array_equal(np.concatenate(one_by_one), epoch_order(5, 0, 1_000_000)[:6400])


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_even() -> None:
    """Every sample is about equally often in every place."""
    table = np.zeros((5, 5))
    for epoch in range(2000):
        table[np.arange(5), epoch_order(1, epoch, 5)] += 1
    assert np.abs(table / 2000 - 0.2).max() < 0.04


@given(st.integers(0, 70), st.integers(1, 20), st.integers(1, 5), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_ranks_share_the_same_batches_from_any_start(count: int, batch: int, world: int, start: int) -> None:
    whole = [part.tolist() for part in batches(3, 2, count, batch)]
    assert len(whole) == batch_count(count, batch)
    assert [sample for part in whole for sample in part] == epoch_order(3, 2, count).tolist()
    ranks = [list(batches(3, 2, count, batch, start=start, rank=rank, world=world)) for rank in range(world)]
    joined = [np.concatenate(parts).tolist() for parts in zip(*ranks, strict=True)]
    assert joined == whole[start:]
    assert all(max(sizes) - min(sizes) <= 1 for parts in zip(*ranks) for sizes in [[len(part) for part in parts]])


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"start": -1}, {"rank": 2, "world": 2}, {"rank": -1}, {"world": 0}, {"count": -1}]
)
def test_impossible_shares(wrong: dict[str, int]) -> None:
    given_ = {"seed": 0, "epoch": 0, "count": 5, "batch": 2} | wrong
    with pytest.raises(ValueError, match=r"batch|count"):
        list(batches(**given_))


def test_streams_belong_to_their_place() -> None:
    first = stream(0, "augment", 1, 23).random(4)
    np.testing.assert_array_equal(first, stream(0, "augment", 1, 23).random(4))
    others = [(0, "augment", 12, 3), (0, "augment", 1, "23"), (1, "augment", 1, 23), (0, "captions", 1, 23), (0,)]
    assert len({tuple(stream(*place).random(4)) for place in others} | {tuple(first)}) == 6
