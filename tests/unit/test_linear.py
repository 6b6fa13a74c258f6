"""The product of a training step: the same, whichever library computes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cutline.models import linear as module
from cutline.models.linear import linear


@pytest.mark.parametrize("shape", [(512, 24), (4, 67, 24), (300, 24), (2, 24)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("mkl_is_fast", [True, False])
def test_it_is_the_product_and_so_are_its_gradients(
    shape: tuple[int, ...], biased: bool, mkl_is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolved = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given: convolved.append(1) or convolve(*given))
    monkeypatch.setattr(module, "MKL_IS_FAST", mkl_is_fast)
    torch.manual_seed(0)
    given = [torch.randn(shape), torch.randn(40, 24), torch.randn(40)][: 3 if biased else 2]
    ours, theirs = ([part.clone().requires_grad_() for part in given] for _ in range(2))
    found, expected = linear(*ours), F.linear(*theirs)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-3, rtol=1e-4)
    large = given[0].numel() >= module.LARGE * 24
    assert bool(convolved) == (large and not mkl_is_fast)
