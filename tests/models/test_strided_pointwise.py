"""Strided 1x1 convolutions: the same function, and gradients that are right on every CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

from distill.components.build_network import to_device
from distill.models.strided_pointwise import subsample_first
from students.design import Design
from students.resnet import ResNet
from tests.forked_process import ForkedProcess

CPU = torch.device("cpu")


def outputs_and_gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    """The output of a network, then the gradients of its sum of squares."""
    images = images.clone().requires_grad_()
    out = net(images)
    return [out, *torch.autograd.grad(out.square().sum(), (images, *net.parameters()))]


@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("size", [7, 8])
def test_subsampling_first_is_the_same_function(stride: int | tuple[int, int], size: int) -> None:
    plain = nn.Conv2d(3, 5, 1, stride=stride).double()
    changed = copy.deepcopy(plain)
    subsample_first(changed)
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    for a, b in zip(
        outputs_and_gradients(changed, images), outputs_and_gradients(plain, images), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_cpu_network_has_no_strided_pointwise_kernel() -> None:
    net = ResNet(Design.of(stages=3, blocks=1, width=4))
    plain = copy.deepcopy(net)
    moved = to_device(to_device(net, CPU), CPU)  # the second call changes nothing
    strides = [
        m.stride for m in moved.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert strides == [(1, 1), (1, 1)]
    assert list(moved.state_dict()) == list(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    copied = copy.deepcopy(moved)  # as the averaged weights are made
    for network in (moved, copied):
        torch.testing.assert_close(network.eval()(images), plain.eval()(images))


def test_padded_and_larger_kernels_keep_their_stride() -> None:
    padded, larger = nn.Conv2d(3, 4, 1, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=2)
    for convolution in (padded, larger):
        subsample_first(convolution)
        assert convolution.stride == (2, 2)


HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.long
@pytest.mark.parametrize(
    "instructions",
    ["DEFAULT", pytest.param("AVX2", marks=pytest.mark.slow)] if HAS_AVX512 else ["DEFAULT"],
)
def test_gradients_of_every_convolution_equal_float64(instructions: str) -> None:
    """In a child process: oneDNN's faulty kernels write past their memory, or end the process."""
    variables = {"ONEDNN_MAX_CPU_ISA": instructions}
    child = ForkedProcess(["tests/models/convolution_gradients.py"], variables)
    printed = child.communicate(timeout=300)
    assert child.returncode == 0, f"ended with {child.returncode}: {''.join(printed)}"
    assert printed[0].endswith(", 0 wrong\n")
