"""Predict a whole split in batches, and compute measures of the predictions."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.augment.crop_flip import to_float
from distill.data.loader import share
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.data.task_progress import image_counter
from distill.errors import UserError
from distill.metrics import Array, measures
from distill.runs.run_folder import RunFolder

BATCH = 500  # images per forward pass: enough to fill a GPU, within two gigabytes

Pixels = NDArray[np.uint8]
# Alters images [n, 3, H, W], given their indices [n] in the split.
Change = Callable[[Pixels, NDArray[np.int64]], Pixels]


@torch.inference_mode()
def predict(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device,
    batch: int = BATCH,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return logits float32 [N, C], on the device, for images [N, 3, H, W].

    `images`: uint8, or float32 in [0, 1]. `forward`: maps float32 images [b, 3, H, W] in [0, 1] to
    logits [b, C]. `batch`: images per forward pass. `between` is called after each forward pass,
    and may raise an exception to stop.
    """
    chunks = []
    for chunk in images.split(batch):
        pixels = chunk.to(device).to(memory_format=torch.channels_last)
        floats = pixels if pixels.is_floating_point() else to_float(pixels)
        chunks.append(forward(floats).float())
        between()
    return torch.cat(chunks)


def logits_and_labels(
    net: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    between: Callable[[], None] = lambda: None,
    change: Change | None = None,
) -> tuple[Tensor, Tensor]:
    """Return logits [N, C] and labels [N] of a whole image set, in its order, on every process.

    Each process predicts a part of the images; each image is predicted once, for any N and number
    of processes. `between` is called after each forward pass. `change` alters the images before
    prediction. The network predicts in eval mode; its mode is restored afterwards.
    """
    processes, n = accelerator.num_processes, len(images.labels)
    pixels, labels = share(images, accelerator.process_index, processes)
    if change is not None:
        indices = np.arange(accelerator.process_index, n, processes)
        pixels = torch.from_numpy(change(pixels.numpy(), indices))
    was_training = net.training
    net.eval()
    logits = predict(net, pixels, accelerator.device, between=between)
    net.train(was_training)
    rows = torch.cat([logits, labels.to(logits)[:, None]], dim=1)
    if processes > 1:  # the parts differ by at most one image: pad, gather, interleave, cut
        padding = -(-n // processes) - len(rows)
        gathered: Tensor = accelerator.gather(nn.functional.pad(rows, (0, 0, 0, padding)))
        rows = rearrange(gathered, "(p n) c -> (n p) c", p=processes)[:n]
    return rows[:, :-1], rows[:, -1].long()


def predict_with_progress(
    net: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    progress: Progress | None,
    task: str,
) -> tuple[Tensor, Tensor]:
    """Return `logits_and_labels`, and report the number of predicted images as progress of `task`.

    `task`: what the display calls it: `predicting the test split`.
    """
    per_batch = BATCH * accelerator.num_processes
    counter = image_counter(progress, task, len(images.labels), per_batch)
    return logits_and_labels(net, images, accelerator, counter)


def to_host(tensors: tuple[Tensor, Tensor]) -> tuple[Array, Array]:
    """Return logits and labels as numpy arrays."""
    logits, labels = tensors
    return logits.cpu().numpy(), labels.cpu().numpy()


def check_finite(logits: Tensor, folder: RunFolder) -> None:
    """Raise UserError if the logits contain NaN or infinity. `folder`: the run, for the message."""
    if not logits.isfinite().all():
        raise UserError(
            f"the network of {folder.path} returns no finite numbers: its weights are damaged or "
            "its training diverged.\nGive another run."
        )


def evaluate_network(
    net: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    between: Callable[[], None] = lambda: None,
    change: Change | None = None,
) -> dict[str, float]:
    """Return `top1`, `nll` and `ece` of a network on an image set, equal on every process.

    `between` is called after each forward pass. `change` alters the images before prediction.
    """
    return measures(*to_host(logits_and_labels(net, images, accelerator, between, change)))


class FlipTTA(nn.Module):
    """Returns the mean of a network's logits for each image [B, 3, H, W] and its mirror image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)  # a new module is in train mode, and would set `net` to it later

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.net(images) + self.net(images.flip(-1))) / 2
        return mean


class SixViewTTA(nn.Module):
    """Returns a weighted mean of a network's logits for six views of each image [B, 3, H, W].

    The views are the image and its mirror image, each in three positions: unshifted (weight 1/4
    each), shifted by one pixel up-left, and down-right (weight 1/8 each). The border is filled by
    reflection. This is the multi-crop evaluation of airbench94: Jordan, 2024, arXiv 2404.00498,
    section 3.6.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.mirrored = FlipTTA(net)
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        up_left, down_right = padded[..., 2:, 2:], padded[..., :-2, :-2]
        shifted = self.mirrored(up_left) + self.mirrored(down_right)
        mean: Tensor = self.mirrored(images) / 2 + shifted / 4
        return mean
