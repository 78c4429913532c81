"""Normalise images inside the network; everywhere else they are in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Mean and standard deviation of red, green and blue over all pixels of CIFAR-10's 50,000 training
# images in [0, 1], rounded to the customary four digits. With eight digits they are 0.49139968
# 0.48215841 0.44653091 and 0.24703223 0.24348513 0.26158784.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2471, 0.2435, 0.2616)
# By data set; those of CIFAR-100 are as in the CRD benchmark (HobbitLong/RepDistiller,
# dataset/cifar100.py).
KNOWN = {
    "cifar10": (MEAN, STD),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


class Normalize(nn.Module):
    """Compute (images - mean) / std per channel, for float images [B, 3, H, W] in [0, 1].

    Mean and std are buffers: they are saved with the weights but are not parameters.
    """

    mean: Tensor  # [1, 3, 1, 1]; std has the same shape
    std: Tensor

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def normalises(net: nn.Module) -> bool:
    """Whether a network normalises its images; the user's own code may do so itself."""
    return isinstance(getattr(net, "normalize", None), Normalize)


@torch.no_grad()
def set_normalisation(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Set the values with which a network's `normalize` layer normalises its images.

    `mean`, `std`: of red, green and blue in [0, 1].
    """
    layer = net.get_submodule("normalize")
    assert isinstance(layer, Normalize)
    for buffer, values in ((layer.mean, mean), (layer.std, std)):
        buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))
