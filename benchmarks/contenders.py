"""Run one of the training loops that `benchmarks/peers.py` compares.

    python -m benchmarks.contenders NAME FOLDER

All distil the same student from the same teacher, with the settings of `benchmarks/pairs.py`.
`naive`, `timm` and `torchdistill` load images as these libraries document it: torchvision's
transforms on Pillow images in a DataLoader. Their steps are a plain PyTorch step, timm's
distillation task, and torchdistill's loss in its `DistillationBox`. `memory` is a plain step on
uint8 images in memory, augmented as a batch, channels last. `online` and `cached` are this
project's step and loader; `cached` reads teacher logits that were cached before.

The process reads its networks and data from FOLDER, which `peers.py` prepared. Each line on stdin
is a number of steps; when they are done, the process writes a line of JSON to stdout.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.pairs import HARD, PAIRS, SGD, SOFT, TEMPERATURE
from distill.components.build_accelerator import build_accelerator
from distill.components.data_pipeline import split_images

PADDING, SIZE = 4, 32
Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W] in [0, 1], int64 [B]


@dataclass(frozen=True)
class Setting:
    """The settings that all contenders share, read from the folder that `peers.py` prepared."""

    folder: Path
    pair: str  # a key of PAIRS
    data: str  # data source
    batch: int  # batch size
    workers: int  # processes of a DataLoader
    device: torch.device

    @classmethod
    def read(cls, folder: Path) -> "Setting":
        """Read `setting.json` of a prepared folder."""
        content = json.loads((folder / "setting.json").read_text())
        return cls(folder, device=torch.device(content.pop("device")), **content)

    def network(self, role: str) -> nn.Module:
        """Build the student or the teacher with the shared weights, on the device."""
        net = getattr(PAIRS[self.pair], role)()
        net.load_state_dict(load_file(self.folder / f"{role}.safetensors"))
        moved: nn.Module = net.to(self.device)
        return moved

    def array(self, name: str) -> NDArray[Any]:
        """Load the array `name` from the folder.

        `images` uint8 [N, 32, 32, 3] and `labels` int64 [N] are the train split; `pixels` float32
        [B, 3, 32, 32] in [0, 1] and `classes` int64 [B] are the shared batch.
        """
        loaded: NDArray[Any] = np.load(self.folder / f"{name}.npy")
        return loaded

    def autocast(self) -> torch.autocast:
        """Return an autocast context: bf16 on a GPU, as this project's `precision = "auto"`, and
        disabled on a CPU.
        """
        on_gpu = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu)


class Contender(Protocol):
    """A training loop that takes a few steps per call."""

    def on_fixed_batch(self) -> float:
        """Take one step on the batch that all contenders share; return the loss before it."""

    def train(self, steps: int) -> None:
        """Take `steps` steps on batches from the contender's own loader."""


@dataclass(frozen=True)
class Loop:
    """A contender that does not use this project's loader and step."""

    fixed: Batch  # the batch that all contenders share
    batches: Iterator[Batch]
    step: Callable[[Tensor, Tensor], Tensor]  # takes a step on images and labels; returns the loss

    def on_fixed_batch(self) -> float:
        return self.step(*self.fixed).item()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(*next(self.batches))


class Ours:
    """The contender that uses this project's step and loader, with the recipe of the pair.

    `stored`: whether to cache the teacher's logits first and read them in every step. Imports are
    inside the constructor, so that the processes of the other contenders do not load them.
    """

    def __init__(self, setting: Setting, *, stored: bool) -> None:
        from distill.data.sources import load_data_set
        from distill.runs.run_folder import RunFolder
        from distill.teacher.teacher import FrozenTeacher
        from distill.training import build, loop

        self.step = loop.step
        pair = PAIRS[setting.pair]
        recipe = pair.recipe(setting.data, setting.batch, stored=stored)
        accel = build_accelerator(recipe)
        split = split_images(recipe, load_data_set.load(setting.data, "train"))
        teacher = FrozenTeacher(setting.network("teacher"))
        identity = {"teacher": (setting.folder / "teacher.txt").read_text()}
        unused = RunFolder(setting.folder / "unused")
        self.run = build.build_state(recipe, pair.role, split, teacher, unused, accel, identity)
        self.run.model_ddp.train()
        self.k = 1
        if stored:
            self._fill()

    def on_fixed_batch(self) -> float:
        """Take step 0, which uses the shared batch: `peers.py` took it from this loader."""
        return self.step(self.run, 0)["total"].item()

    def train(self, steps: int) -> None:
        for k in range(self.k, self.k + steps):
            self.step(self.run, k)
        self.k += steps

    def _fill(self) -> None:
        """Cache the teacher's logits of view 0, as the first epoch of a training does."""
        needs = self.run.loss.needs(0.0)
        for k in range(self.run.loader.steps_per_epoch):
            [(view, rows)] = self.run.loader.batches(k)
            self.run.teacher(self.run.loader.batch(view, rows), needs)


def naive(setting: Setting) -> Loop:
    """Build a loop as in PyTorch tutorials: DataLoader, plain step."""
    student, teacher = setting.network("student"), setting.network("teacher").eval()
    return Loop(
        _shared_batch(setting), _pillow_batches(setting), _plain_step(setting, student, teacher)
    )


def timm_task(setting: Setting) -> Loop:
    """Build a loop with timm's distillation task.

    The task would normalise the images again for the teacher. Both networks normalise their input
    themselves, so the task gets mean 0 and std 1.
    """
    from timm.task import LogitDistillationTask

    student, teacher = setting.network("student"), setting.network("teacher")
    attributes: Any = {"pretrained_cfg": {"mean": (0.0,) * 3, "std": (1.0,) * 3}}
    for net in (student, teacher):
        vars(net).update(attributes | {"num_classes": 10, "in_chans": 3})
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=HARD,
        distill_loss_weight=SOFT,
        temperature=TEMPERATURE,
        device=setting.device,
        verbose=False,
    )
    optimizer = _sgd(student)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            loss: Tensor = task(images, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Loop(_shared_batch(setting), _pillow_batches(setting), step)


def torchdistill_box(setting: Setting) -> Loop:
    """Build a loop with torchdistill's loss and `DistillationBox`, which builds the optimizer."""
    from torchdistill.core.distillation import DistillationBox

    logits = {
        f"{net}_module_{key}": value
        for net in ("student", "teacher")
        for key, value in (("path", "."), ("io", "output"))
    }
    kd = {"key": "KDLoss", "kwargs": logits | {"temperature": TEMPERATURE, "alpha": HARD}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}},
        },
    }
    box = DistillationBox(
        setting.network("teacher").eval(),
        setting.network("student"),
        {},
        config,
        setting.device,
        None,
        False,
        1,
    )

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            loss: Tensor = box.forward_process(images, targets=labels, supp_dict={})
        box.post_forward_process(loss=loss)
        return loss.detach()

    return Loop(_shared_batch(setting), _pillow_batches(setting), step)


def memory(setting: Setting) -> Loop:
    """Build a loop with a plain step on images in memory, channels last."""
    student, teacher = (
        _channels_last(setting.network(role), setting.device) for role in ("student", "teacher")
    )
    images, labels = _shared_batch(setting)
    fixed = images.contiguous(memory_format=torch.channels_last), labels
    return Loop(fixed, _memory_batches(setting), _plain_step(setting, student, teacher.eval()))


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "naive": naive,
    "timm": timm_task,
    "torchdistill": torchdistill_box,
    "memory": memory,
    "online": lambda setting: Ours(setting, stored=False),
    "cached": lambda setting: Ours(setting, stored=True),
}
PEERS = ("naive", "timm", "torchdistill")


def _channels_last(net: Any, device: torch.device) -> nn.Module:
    moved: nn.Module = net.to(device, memory_format=torch.channels_last)
    return moved


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    options: Any = SGD
    return torch.optim.SGD(net.parameters(), **options)


def _plain_step(
    setting: Setting, student: nn.Module, teacher: nn.Module
) -> Callable[[Tensor, Tensor], Tensor]:
    optimizer = _sgd(student)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            with torch.no_grad():
                teacher_logits = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = HARD * F.cross_entropy(logits, labels) + SOFT * TEMPERATURE**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _shared_batch(setting: Setting) -> Batch:
    pixels, classes = (torch.from_numpy(setting.array(name)) for name in ("pixels", "classes"))
    return pixels.to(setting.device), classes.to(setting.device)


class PillowImages(Dataset[tuple[Any, int]]):
    """A data set like torchvision's CIFAR10: transforms one Pillow image at a time."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=PADDING, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def _pillow_batches(setting: Setting) -> Iterator[Batch]:
    loader = DataLoader(
        PillowImages(setting.array("images"), setting.array("labels")),
        setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        pin_memory=setting.device.type == "cuda",
    )
    while True:
        for batch in loader:
            images, labels = (t.to(setting.device, non_blocking=True) for t in batch)
            yield images, labels


def _memory_batches(setting: Setting) -> Iterator[Batch]:
    border = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    images = torch.from_numpy(np.pad(setting.array("images"), border, "reflect")).to(setting.device)
    labels = torch.from_numpy(setting.array("labels")).to(setting.device)
    axis = torch.arange(SIZE, device=setting.device)
    while True:
        order = torch.randperm(len(labels), device=setting.device)
        for rows in order.unfold(0, setting.batch, setting.batch):  # full batches only
            corner = torch.randint(2 * PADDING + 1, (2, len(rows), 1), device=setting.device)
            mirrored = torch.rand(len(rows), 1, device=setting.device) < 0.5
            ys = corner[0] + axis
            xs = corner[1] + torch.where(mirrored, SIZE - 1 - axis, axis)
            crops = images[rows[:, None, None], ys[:, :, None], xs[:, None]]
            yield crops.permute(0, 3, 1, 2).float() / 255, labels[rows]


def main(name: str, folder: str) -> None:
    """Take two steps on the shared batch and write their losses to stdout; then, for each number of
    steps on stdin, take them and write the seconds that they took.
    """
    replies, sys.stdout = sys.stdout, sys.stderr  # anything that the loops print goes to stderr
    setting = Setting.read(Path(folder))
    contender = CONTENDERS[name](setting)
    _write(replies, losses=[contender.on_fixed_batch(), contender.on_fixed_batch()])
    for line in sys.stdin:
        began_at = time.perf_counter()
        contender.train(int(line))
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        _write(replies, seconds=time.perf_counter() - began_at)


def _write(file: TextIO, **content: Any) -> None:
    print(json.dumps(content), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
