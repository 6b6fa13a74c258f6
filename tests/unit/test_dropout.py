"""Dropout drops what it should, and no other: the same as PyTorch's but for which."""

from __future__ import annotations

import pytest
import torch

from cutline.models.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_its_share_is_dropped_and_the_rest_makes_up_for_it(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    inputs = torch.ones(101, 999, dtype=dtype)  # not a multiple of four
    outputs = Dropout(p)(inputs)
    assert outputs.dtype == dtype
    kept = outputs != 0
    assert float((~kept).double().mean()) == pytest.approx(p, abs=0.006)  # four standard deviations
    torch.testing.assert_close(outputs[kept], torch.full_like(outputs[kept], 1 / (1 - p)), rtol=1e-2, atol=0)
    if dtype == torch.float64:
        assert float(outputs.max()) == pytest.approx(1 / (1 - p), rel=1e-4)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(2)
    dropped = (Dropout(0.3)(torch.ones(400_000)) == 0).double()
    for distance in (1, 2, 3, 4, 5, 8):
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert both == pytest.approx(0.09, abs=0.002), distance


def test_the_gradient_is_of_what_was_kept() -> None:
    inputs = torch.randn(64, 33, requires_grad=True)
    outputs = Dropout(0.4)(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad * inputs.detach(), outputs.detach())


def test_the_seed_says_which() -> None:
    inputs = torch.ones(1000)

    def drop(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(inputs)

    assert torch.equal(drop(1), drop(1))
    assert not torch.equal(drop(1), drop(2))


def test_nothing_all_and_evaluation() -> None:
    inputs = torch.randn(50)
    assert torch.equal(Dropout(0.0)(inputs), inputs)
    assert torch.equal(Dropout(0.5).eval()(inputs), inputs)
    assert not Dropout(1.0)(inputs).any()
    assert Dropout(0.5)(torch.empty(0)).shape == (0,)
