"""Norms at rest are folded into convolutions: nothing else changes."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.models.encoders import build_encoder
from cutline.models.resting import fold_resting


class Twisted(nn.Module):
    """Made in the order (conv, norm), run the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Shared(nn.Module):
    """What the convolution gives is also used without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def straight(bias: bool = True) -> nn.Sequential:
    layers = OrderedDict(
        first=nn.Conv2d(4, 6, 3, 2, 1, bias=bias), norm1=nn.BatchNorm2d(6), relu=nn.ReLU(inplace=True),
        second=nn.Conv2d(6, 4, 3, 1, 1, groups=2, bias=bias), norm2=nn.BatchNorm2d(4),
    )  # fmt: skip
    return nn.Sequential(layers)


def learned(model: nn.Module) -> nn.Module:
    """With statistics and weights such as training leaves behind."""
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.2, 2)
    return model


def folded(model: nn.Module, pictures: Tensor) -> int:
    model.eval()
    fold_resting(model, lambda: model(pictures))
    return sum(hasattr(part, "_behind") for part in model.modules())


def gradients(model: nn.Module, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    found: Tensor = model(pictures)
    (found * torch.linspace(-1, 1, found[0].numel()).view_as(found[0])).sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bias", [True, False])
def test_same_result_same_gradients_same_names(bias: bool) -> None:
    plain = learned(straight(bias)).eval()
    joined = copy.deepcopy(plain)
    pictures = torch.randn(3, 4, 8, 8)
    assert folded(joined, pictures) == 2
    assert joined.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], value, rtol=0, atol=0)
    (one, grads), (two, others) = gradients(plain, pictures), gradients(joined, pictures)
    torch.testing.assert_close(one, two)
    assert grads.keys() == others.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-4)


def test_the_norm_is_not_run_while_it_rests() -> None:
    model, pictures = learned(straight()), torch.randn(2, 4, 8, 8)
    assert folded(model, pictures) == 2
    with torch.profiler.profile() as seen:
        model(pictures)
    assert not [event.key for event in seen.key_averages() if "batch_norm" in event.key]


def test_a_norm_that_learns_is_left_to_itself() -> None:
    plain = learned(straight())
    joined, pictures = copy.deepcopy(plain), torch.randn(3, 4, 8, 8)
    folded(joined, pictures)
    torch.testing.assert_close(joined.train()(pictures), plain.train()(pictures))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], value)


@pytest.mark.parametrize("kind", [Twisted, Shared])
def test_a_wrong_guess_is_taken_back_though_the_norm_is_new(kind: type[nn.Module]) -> None:
    model, pictures = kind(), torch.randn(2, 4, 8, 8)
    assert folded(model, pictures) == 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned(model)
    assert any((model.state_dict()[name] != value).any() for name, value in before.items())
    expected = learned(kind())
    expected.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(pictures), expected.eval()(pictures), rtol=0, atol=0)


def test_a_copy_has_norms_of_its_own() -> None:
    model, pictures = learned(straight()), torch.randn(2, 4, 8, 8)
    folded(model, pictures)
    twin = copy.deepcopy(model)
    before = twin(pictures)
    with torch.no_grad():
        dict(model.named_parameters())["norm1.weight"].zero_()
    torch.testing.assert_close(twin(pictures), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "densenet121"])
def test_encoders_are_folded_and_compute_what_timm_does(name: str) -> None:
    import timm

    encoder = learned(build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig(size=64))).eval()
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(encoder.model.state_dict())
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = plain.forward_features(encoder.normalise(pictures))
    assert sum(hasattr(part, "_behind") for part in encoder.modules()) > 50
    torch.testing.assert_close(
        encoder(pictures).grid, expected.flatten(2).mT, rtol=1e-2, atol=1e-2 * float(expected.detach().abs().max())
    )


def test_places_are_taken_before_convolutions_that_would_end_the_process() -> None:
    """For the gradients of such a convolution oneDNN spoils the memory; here they are what they should be."""
    import timm

    encoder = build_encoder(EncoderConfig(name="repvgg_a0", weights="none"), PicturesConfig(size=32)).eval()
    strided = [conv for conv in encoder.modules() if isinstance(conv, torch.nn.Conv2d) and max(conv.stride) > 1]
    assert strided
    assert all(conv.kernel_size != (1, 1) or conv.in_channels >= 16 for conv in strided)
    plain = timm.create_model("repvgg_a0", num_classes=0).eval()
    plain.load_state_dict(encoder.model.state_dict())
    plain.double()  # which oneDNN does not compute
    pictures = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = plain.forward_features(encoder.normalise(pictures).double()).flatten(2).mT
    expected.square().mean().backward()
    found = encoder(pictures).grid
    found.square().mean().backward()
    expected = expected.detach().float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    name = "stem.conv_1x1.conv.weight"
    own, other = (dict(model.named_parameters())[name].grad for model in (encoder.model, plain))
    torch.testing.assert_close(own, other.float(), rtol=1e-2, atol=1e-3 * float(other.abs().max()))
