"""Convolutions of small maps as matrix products: the same function, found where it pays."""

import copy

import pytest
import torch
from torch import Tensor, nn

from distill.components.build_network import to_device
from distill.models.convolutions_of_small_maps import (
    MIN_CHANNELS,
    SmallMapConv2d,
    use_matrix_products,
)
from distill.teacher import fold_batch_norm
from students.design import Design
from students.resnet import ResNet

CPU = torch.device("cpu")


def wide(inputs: int = MIN_CHANNELS, outputs: int = MIN_CHANNELS, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1} | options)  # type: ignore[arg-type]


def outputs_and_gradients(net: nn.Module, maps: Tensor) -> list[Tensor]:
    """The output of a network, then the gradients of a fixed projection of it."""
    maps = maps.clone().requires_grad_()
    out = net(maps)
    generator = torch.Generator().manual_seed(1)
    projection = torch.randn(out.shape, generator=generator).to(out)
    loss = (out * projection).sum()
    return [out.detach(), *torch.autograd.grad(loss, (maps, *net.parameters()))]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(3, 3), (1, 1), (2, 4), (4, 4)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_outputs_and_gradients_equal_the_convolution_in_float64(
    size: tuple[int, int], layout: torch.memory_format, bias: bool
) -> None:
    torch.manual_seed(0)
    changed = wide(outputs=MIN_CHANNELS + 32, bias=bias)
    reference = copy.deepcopy(changed).double()
    use_matrix_products(changed)
    maps = torch.randn(5, MIN_CHANNELS, *size).to(memory_format=layout)
    assert isinstance(changed, SmallMapConv2d)
    for ours, true in zip(
        outputs_and_gradients(changed, maps),
        outputs_and_gradients(reference, maps.double()),
        strict=True,
    ):
        assert (ours - true).norm() <= 1e-6 * true.norm()


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_autocast_computes_in_bfloat16(size: int) -> None:
    torch.manual_seed(0)
    plain = wide(bias=True)
    changed = copy.deepcopy(plain)
    use_matrix_products(changed)
    maps = torch.randn(8, MIN_CHANNELS, size, size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = list(
            zip(
                outputs_and_gradients(changed, maps),
                outputs_and_gradients(plain, maps),
                strict=True,
            )
        )
    true = outputs_and_gradients(copy.deepcopy(plain).double(), maps.double())
    for (ours, theirs), reference in zip(pairs, true, strict=True):
        assert ours.dtype == theirs.dtype
        assert 1e-5 < (ours - reference).norm() / reference.norm() < 0.01  # bfloat16, not float32


def multiplies(net: nn.Module, maps: Tensor) -> bool:
    """Whether the autograd graph of the output has the matrix product."""
    out = net(maps)
    nodes = [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if "_Convolution" in type(node).__name__:
            return True
        nodes += [parent for parent, _ in node.next_functions]
    return False


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [
        (torch.float32, 3, True),
        (torch.float32, 4, False),
        (torch.bfloat16, 4, True),
        (torch.bfloat16, 5, False),
        (torch.float64, 2, False),
    ],
)
def test_only_maps_that_are_small_for_their_type(
    dtype: torch.dtype, size: int, expected: bool
) -> None:
    net = wide().to(dtype)
    use_matrix_products(net)
    assert multiplies(net, torch.randn(2, MIN_CHANNELS, size, size, dtype=dtype)) is expected


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": MIN_CHANNELS - 1},
        {"outputs": MIN_CHANNELS - 1},
        {"stride": 2},
        {"padding": 0},
        {"padding_mode": "reflect"},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
    ],
)
def test_other_convolutions_stay(options: dict[str, int]) -> None:
    net = wide(**options)
    use_matrix_products(net)
    assert type(net) is nn.Conv2d


def pooled() -> ResNet:
    design = Design.of(stages=3, blocks=1, channels=[8, 16, MIN_CHANNELS], downsample="pool")
    return ResNet(design)


def test_network_on_cpu_gives_same_logits() -> None:
    plain = pooled().eval()
    moved = to_device(to_device(copy.deepcopy(plain), CPU), CPU)
    assert sum(isinstance(module, SmallMapConv2d) for module in moved.modules()) == 2
    assert list(moved.state_dict()) == list(plain.state_dict())
    images = torch.rand(4, 3, 32, 32)
    for network in (moved, copy.deepcopy(moved)):  # as the averaged weights are made
        torch.testing.assert_close(network(images), plain(images))


@pytest.mark.long
def test_batch_norms_behind_it_are_folded_into_it() -> None:
    moved = to_device(pooled().eval(), CPU)
    with torch.no_grad():
        for module in moved.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    folded = fold_batch_norm.prepare_for_inference(moved, 32)
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == [f"stages.{i}.0.norm" for i in range(3)]  # those behind a max pool
