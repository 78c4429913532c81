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
from distill.format import describe_class_difference
from distill.runs.run_folder import RunFolder

BATCH = 500  # images a forward: large enough to fill a GPU, small enough for two gigabytes

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, NDArray[np.int64]], Pixels]  # images [n, 3, H, W], their rows in the set


def test_split(source: str, *, progress: Progress | None = None) -> ImageSet:
    """The test split of a source. Measured after a run, never while one trains or selects."""
    return image_set.load(source, "test", progress=progress)


@dataclass(frozen=True)
class SplitIdentity:
    """What a run knows of the test split while it trains: no image, no label, no prediction."""

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
    """Raises UserError if the test split or its class names are not those that a run began with."""
    found = ""
    if test.class_names != known.class_names:
        names = describe_class_difference(known.class_names, test.class_names)
        found = f"the class names of {known.source} changed while the run trained: "
        found += " / ".join(names)
    elif test.fingerprint != known.fingerprint:
        prints = (known.fingerprint[:12], test.fingerprint[:12])
        found = f"the test split of {known.source} changed while the run trained: fingerprint "
        found += " / ".join(prints)
    if found:
        raise UserError(f"{found}.\nBring the former images and class folders back.")


def check_tested(folder: RunFolder, test: ImageSet, source: str) -> None:
    """Raises UserError if a finished run was tested on other images than `test`, of `source`.

    A run of an earlier version does not name its test split: nothing is compared then.
    """
    known = folder.result()["data"].get("test_fingerprint")
    if known not in (None, test.fingerprint):
        raise UserError(
            f"the test split of {source} is not the one that run {folder.path} was tested on: "
            f"fingerprint {test.fingerprint[:12]}, then {str(known)[:12]}.\n"
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

    `between` is called after each forward, and may leave by an exception.
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
    processes. `change` alters the images before they are seen. The network's mode is restored.
    """
    processes, n = accelerator.num_processes, len(images.labels)
    pixels, labels = share(images, accelerator.process_index, processes)
    if change is not None:
        rows = np.arange(accelerator.process_index, n, processes)
        pixels = torch.from_numpy(change(pixels.numpy(), rows))
    was_training = net.training
    net.eval()
    mine = predict(net, pixels, accelerator.device, between=between)
    net.train(was_training)
    answers = torch.cat([mine, labels.to(mine)[:, None]], dim=1)
    if processes > 1:  # shares differ by one sample at most: pad, gather, interleave, cut
        padding = -(-n // processes) - len(answers)
        gathered: Tensor = accelerator.gather(nn.functional.pad(answers, (0, 0, 0, padding)))
        answers = rearrange(gathered, "(p n) c -> (n p) c", p=processes)[:n]
    return answers[:, :-1], answers[:, -1].long()


def check_finite(logits: Tensor, folder: RunFolder) -> None:
    """Raises UserError for a run whose network returns NaN or infinity."""
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
    """`top1`, `nll`, `ece` of a network on a set, the same number on every process."""
    return measures(*logits_and_labels(net, images, accelerator, between, change))


class FlipTTA(nn.Module):
    """Images [B, 3, H, W] to the mean of a network's logits of each image and of its mirror."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)  # a wrapper begins in train mode, and would leave it in that

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.net(images) + self.net(images.flip(-1))) / 2
        return mean


class SixViewTTA(nn.Module):
    """Images [B, 3, H, W] to a weighted mean of a network's logits of six views of each image.

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
