"""Marks of places, given to a grid of another size."""

from __future__ import annotations

import torch

from cutline.models.attention import spread


def test_a_mark_stays_where_it_was_in_the_picture() -> None:
    down, right = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    marks = torch.stack([down / 7, right / 7], 2).flatten(0, 1)  # each region is marked with where it is
    down, right = spread(marks, 81).unflatten(0, (9, 9)).unbind(2)
    assert down.shape == right.shape == (9, 9)
    for along, across in ((down, right), (right.T, down.T)):
        assert torch.allclose(along, along[:, :1].expand(9, 9), atol=1e-6)  # no mixing up of rows and columns
        assert (along.diff(dim=0) > 0).all()
        assert torch.allclose(across.mean(0), across[0], atol=1e-6)
    assert torch.allclose(spread(marks, 81).mean(0), marks.mean(0), atol=0.02)
    assert spread(marks, 49) is marks
