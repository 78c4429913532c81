"""Predict and measure a whole split; the only module that reads the test split."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.augment.crop_flip import to_float
from distill.data.loader import share
from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet, Progress
from distill.errors import UserError
from distill.evaluation.metrics import measures
from distill.phrases import describe_class_difference
from distill.runs.run_folder import RunFolder

BATCH = 500  # images per forward pass: enough to fill a GPU, within two gigabytes

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, NDArray[np.int64]], Pixels]  # images [n, 3, H, W], their indices


def test_split(source: str, *, progress: Progress | None = None) -> ImageSet:
    """Load the test split of a source. It is measured after a run, never to train or to select."""
    return image_set.load(source, "test", progress=progress)


@dataclass(frozen=True)
class SplitIdentity:
    """The identity of a test split, for a run while it trains: no image, label or prediction."""

    source: str
    fingerprint: str  # of images and labels, in any order
    class_names: tuple[str, ...]
    n_images: int
    n_in_train: int  # test images that are training images too, pixel by pixel


def identify_test(
    source: str, train: ImageSet, *, progress: Progress | None = None
) -> SplitIdentity:
    """The identity of the test split of a source, recorded when a run begins.

    It is compared for equality and never used to train or to select.
    """
    test = test_split(source, progress=progress)
    in_train = image_set.count_shared_images(test, train)
    return SplitIdentity(source, test.fingerprint, test.class_names, len(test.labels), in_train)


def check_test(test: ImageSet, known: SplitIdentity) -> None:
    """Raise UserError if the test split or its class names are not those `known` from the start."""
    problem = ""
    if test.class_names != known.class_names:
        names = describe_class_difference(known.class_names, test.class_names)
        problem = f"the class names of {known.source} changed while the run trained: "
        problem += " / ".join(names)
    elif test.fingerprint != known.fingerprint:
        prints = (known.fingerprint[:12], test.fingerprint[:12])
        problem = f"the test split of {known.source} changed while the run trained: fingerprint "
        problem += " / ".join(prints)
    if problem:
        raise UserError(f"{problem}.\nBring the former images and class folders back.")


def check_tested(folder: RunFolder, test: ImageSet, source: str) -> None:
    """Raise UserError if a finished run was tested on other images than `test`, of `source`.

    A run of an earlier version has no fingerprint of its test split: it is not compared.
    """
    tested_on = folder.result()["data"].get("test_fingerprint")
    if tested_on not in (None, test.fingerprint):
        raise UserError(
            f"the test split of {source} is not the one that run {folder.path} was tested on: "
            f"fingerprint {test.fingerprint[:12]}, then {str(tested_on)[:12]}.\n"
            "Bring the former images back; python cli.py evaluate RUN --data SOURCE measures the "
            "run on others."
        )


@torch.inference_mode()
def predict(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device,
    batch: int = BATCH,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits float32 [N, C] on the device for uint8 images [N, 3, H, W].

    `between` is called after each forward pass, and may raise an exception to stop.
    """
    chunks = []
    for chunk in images.split(batch):
        floats = to_float(chunk.to(device).to(memory_format=torch.channels_last))
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
    """Logits [N, C] and labels [N] of the whole set, in its order, on every process.

    Each process predicts its own share; no sample is counted twice whatever N and the number of
    processes. `change` alters the images before prediction. The network's mode is restored.
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
    if processes > 1:  # shares differ by one sample at most: pad, gather, interleave, cut
        padding = -(-n // processes) - len(rows)
        gathered: Tensor = accelerator.gather(nn.functional.pad(rows, (0, 0, 0, padding)))
        rows = rearrange(gathered, "(p n) c -> (n p) c", p=processes)[:n]
    return rows[:, :-1], rows[:, -1].long()


def check_finite(logits: Tensor, folder: RunFolder) -> None:
    """Raise UserError if the run's network returns NaN or infinity."""
    if not logits.isfinite().all():
        raise UserError(
            f"the network of {folder.path} returns no finite numbers: its weights are damaged or "
            "its training diverged.\nGive another run."
        )


def measure(
    net: nn.Module,
    images: ImageSet,
    accelerator: Accelerator,
    between: Callable[[], None] = lambda: None,
    change: Change | None = None,
) -> dict[str, float]:
    """`top1`, `nll`, `ece` of a network on a set, the same values on every process."""
    return measures(*logits_and_labels(net, images, accelerator, between, change))


class FlipTTA(nn.Module):
    """Return the mean of a network's logits of each image [B, 3, H, W] and of its mirror image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)  # a new module is in train mode, which would be restored later

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.net(images) + self.net(images.flip(-1))) / 2
        return mean


class SixViewTTA(nn.Module):
    """Return a weighted mean of a network's logits of six views of each image [B, 3, H, W].

    The views are the image and its mirror image, each in three positions: unshifted (weight 1/2)
    and shifted by one pixel up-left and down-right, the border filled by reflection (weight 1/4
    each). This is the multi-crop evaluation of Jordan, 2024, arXiv 2404.00498, section 3.6, in his
    airbench94.
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
