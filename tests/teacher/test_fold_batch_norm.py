"""A frozen network: fewer operations, the same logits."""

import pytest
import torch
from torch import Tensor, nn

from distill.models.features import FeatureExtractor, tap_points
from distill.teacher import fold_batch_norm
from networks import by_name
from students.design import Design
from students.resnet import ResNet
from teachers.ensemble import Ensemble
from teachers.wrn import WideResNet


def lived(net: nn.Module) -> nn.Module:
    """As after a training: every statistic, scale and shift of a norm is one of its own."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            module.running_mean = torch.randn(shape, generator=generator) / 10
            module.running_var = 0.5 + torch.rand(shape, generator=generator)
            module.weight.data = 0.5 + torch.rand(shape, generator=generator)
            module.bias.data = torch.randn(shape, generator=generator) / 10
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def wide() -> nn.Module:
    return lived(WideResNet(16, 2))


def residual() -> nn.Module:
    return lived(ResNet(Design.of(stages=3, blocks=1, width=8)))


def pooled() -> nn.Module:
    """With scales of both signs: a max pool and a negative scale do not change places."""
    net = lived(ResNet(Design.of(stages=3, blocks=[1, 0, 1], width=8, downsample="pool")))
    for stage in net.get_submodule("stages").children():
        head = stage[0].get_submodule("norm")  # type: ignore[index]
        head.weight.data[::2] *= -1
    return net


IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.long
@pytest.mark.parametrize(
    ("made", "left"),
    [
        (residual, 0),  # post-activation: every norm follows a convolution
        (pooled, 3),  # those after a pool stay
        (wide, 13 - 6),  # pre-activation: the second norm of each of six blocks does
        (lambda: Ensemble([wide(), residual()]), 13 - 7),  # no taps here: the stem is folded too
        (lambda: Ensemble([wide(), residual()], [1.0, 3.0], mirror=True), 13 - 7),
        (lambda: lived(by_name.build("timm/resnet18", depth=0, widen=0, classes=10)), 0),
    ],
)
def test_folded_norms_preserve_the_logits(made, left) -> None:  # type: ignore[no-untyped-def]
    net = made()
    ready = fold_batch_norm.prepare_for_inference(net, 32)
    assert norms(ready) == left < norms(net), "the copy alone is changed"
    with torch.no_grad():
        folded, expected = ready(IMAGES), net(IMAGES)
    assert (folded - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not torch.equal(folded, expected), (
        "folding rounds; equal bits would mean that nothing was"
    )


@pytest.mark.parametrize("made", [wide, residual, pooled])
def test_every_tap_is_what_it_was(made) -> None:  # type: ignore[no-untyped-def]
    net = made()
    names = tuple(tap_points(net))
    ready = fold_batch_norm.prepare_for_inference(net, 32)
    with torch.no_grad():
        before, after = (FeatureExtractor(each, names)(IMAGES).taps for each in (net, ready))
    assert before.keys() == after.keys()
    for name, map_ in before.items():
        torch.testing.assert_close(after[name], map_, rtol=1e-4, atol=1e-4, msg=name)


class Shared(nn.Module):
    """One convolution read by two: by its norm and by the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        return (out + self.norm(out)).mean((2, 3))


class Undecided(nn.Module):
    """Cannot be traced: what it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        out = self.norm(self.conv(images)) if images.mean() > 0 else images
        return out.mean((2, 3))


@pytest.mark.parametrize("net", [Shared(), Undecided()])
def test_what_cannot_be_folded_stays(net: nn.Module) -> None:
    lived(net)
    ready = fold_batch_norm.prepare_for_inference(net, 32)
    assert norms(ready) == 1
    assert torch.equal(ready(IMAGES), net(IMAGES))


def test_folding_that_changes_logits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
        return convolution  # forgets the norm

    monkeypatch.setattr(fold_batch_norm, "fuse_conv_bn_eval", wrong)
    net = residual()
    assert norms(fold_batch_norm.fold_batch_norms(residual())) == 0
    assert torch.equal(fold_batch_norm.prepare_for_inference(net, 32)(IMAGES), net(IMAGES))


def test_shorter_type_matches_autocast() -> None:
    net = residual()
    unfolded = fold_batch_norm.prepare_for_inference(net, 32)
    short = fold_batch_norm.prepare_for_inference(net, 32, torch.bfloat16)
    assert {p.dtype for p in short.parameters()} == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(short(IMAGES), unfolded(IMAGES)), "the same rounding, once"
