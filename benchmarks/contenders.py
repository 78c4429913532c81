"""The training loops that `benchmarks/peers.py` sets side by side, each in a process of its own.

All distil the same student from the same teacher with the job of `benchmarks/pairs.py`. The peers
are written as their documentation writes them: torchvision's transforms on Pillow images and a
DataLoader, then a plain loop (`naive`), timm's task, or torchdistill's loss in torchdistill's box.
`memory` is a plain loop too, on a uint8 set in memory that is augmented as a batch, channels last.
`online` and `cached` are this project's own step and loader, `cached` with the teacher's answers
stored before.

    python -m benchmarks.contenders NAME FOLDER

builds one of them from what `peers.py` put into FOLDER and obeys: each line on stdin is a number of
steps, answered on stdout by a line of JSON once they are done.
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
from distill.components.data_pipeline import split_images
from distill.components.device import build_accelerator

PADDING, SIZE = 4, 32
Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W] in [0, 1], int64 [B]


@dataclass(frozen=True)
class Setting:
    """What all contenders get, read from the folder that `peers.py` prepared."""

    place: Path
    pair: str
    data: str
    batch: int
    workers: int  # of a DataLoader
    device: torch.device

    @classmethod
    def read(cls, place: Path) -> "Setting":
        told = json.loads((place / "setting.json").read_text())
        return cls(place, device=torch.device(told.pop("device")), **told)

    def network(self, role: str) -> nn.Module:
        """A network with the common weights, on the device."""
        net = getattr(PAIRS[self.pair], role)()
        net.load_state_dict(load_file(self.place / f"{role}.safetensors"))
        moved: nn.Module = net.to(self.device)
        return moved

    def array(self, name: str) -> NDArray[Any]:
        """`images` uint8 [N, 32, 32, 3], `labels` int64 [N]; `pixels` and `classes` of a batch."""
        read: NDArray[Any] = np.load(self.place / f"{name}.npy")
        return read

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, as this project's `precision = "auto"`; nothing on a CPU."""
        on_gpu = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu)


class Contender(Protocol):
    """A loop that can be driven a few steps at a time."""

    def on_fixed_batch(self) -> float:
        """One step on the common batch: its loss before the step."""

    def train(self, steps: int) -> None:
        """So many steps on batches of its own loader."""


@dataclass(frozen=True)
class Loop:
    """A contender that is not ours: any loader, any step."""

    fixed: Batch
    batches: Iterator[Batch]
    step: Callable[[Tensor, Tensor], Tensor]

    def on_fixed_batch(self) -> float:
        return self.step(*self.fixed).item()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(*next(self.batches))


class Ours:
    """This project's step and loader, by the recipe of the pair.

    What it needs is imported here: the other processes shall not hold it in memory.
    """

    def __init__(self, setting: Setting, *, stored: bool) -> None:
        from distill.data.sources import image_set
        from distill.runs.run_folder import RunFolder
        from distill.teacher.teacher import FrozenTeacher
        from distill.training import build, loop

        self.step = loop.step
        pair = PAIRS[setting.pair]
        recipe = pair.recipe(setting.data, setting.batch, stored=stored)
        accel = build_accelerator(recipe)
        split = split_images(recipe, image_set.load(setting.data, "train"))
        teacher = FrozenTeacher(setting.network("teacher"))
        identity = {"teacher": (setting.place / "teacher.txt").read_text()}
        nowhere = RunFolder(setting.place / "unused")
        self.run = build.build_state(recipe, pair.role, split, teacher, nowhere, accel, identity)
        self.run.model_ddp.train()
        self.k = 1
        if stored:
            self._fill()

    def on_fixed_batch(self) -> float:
        """Step 0: `peers.py` took the common batch from the same loader."""
        return self.step(self.run, 0)["total"].item()

    def train(self, steps: int) -> None:
        for k in range(self.k, self.k + steps):
            self.step(self.run, k)
        self.k += steps

    def _fill(self) -> None:
        """Every answer of view 0, as the epoch of a first student would have asked for them."""
        needs = self.run.loss.needs(0.0)
        for k in range(self.run.loader.steps_per_epoch):
            [(view, rows)] = self.run.loader.batches(k)
            self.run.teacher(self.run.loader.batch(view, rows), needs)


def naive(setting: Setting) -> Loop:
    """The loop of a tutorial."""
    student, teacher = setting.network("student"), setting.network("teacher").eval()
    return Loop(_fixed(setting), _pictures(setting), _plain_step(setting, student, teacher))


def timm_task(setting: Setting) -> Loop:
    """timm's task. It renormalises the images for its teacher; here both nets do so inside."""
    from timm.task import LogitDistillationTask

    student, teacher = setting.network("student"), setting.network("teacher")
    facts: Any = {"pretrained_cfg": {"mean": (0.0,) * 3, "std": (1.0,) * 3}}
    for net in (student, teacher):
        vars(net).update(facts | {"num_classes": 10, "in_chans": 3})
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

    return Loop(_fixed(setting), _pictures(setting), step)


def torchdistill_box(setting: Setting) -> Loop:
    """torchdistill's loss in torchdistill's box, which is told its optimizer by name."""
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

    return Loop(_fixed(setting), _pictures(setting), step)


def memory(setting: Setting) -> Loop:
    """A plain loop on a set in memory."""
    student, teacher = (
        _channels_last(setting.network(role), setting.device) for role in ("student", "teacher")
    )
    images, labels = _fixed(setting)
    fixed = images.contiguous(memory_format=torch.channels_last), labels
    return Loop(fixed, _in_memory(setting), _plain_step(setting, student, teacher.eval()))


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
    chosen: Any = SGD
    return torch.optim.SGD(net.parameters(), **chosen)


def _plain_step(
    setting: Setting, student: nn.Module, teacher: nn.Module
) -> Callable[[Tensor, Tensor], Tensor]:
    optimizer = _sgd(student)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            with torch.no_grad():
                taught = teacher(images)
            said = student(images)
            soft = F.kl_div(
                F.log_softmax(said / TEMPERATURE, dim=1),
                F.softmax(taught / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = HARD * F.cross_entropy(said, labels) + SOFT * TEMPERATURE**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _fixed(setting: Setting) -> Batch:
    pixels, classes = (torch.from_numpy(setting.array(name)) for name in ("pixels", "classes"))
    return pixels.to(setting.device), classes.to(setting.device)


class Pictures(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR10: from the array one Pillow image at a time, then the transform."""

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


def _pictures(setting: Setting) -> Iterator[Batch]:
    loader = DataLoader(
        Pictures(setting.array("images"), setting.array("labels")),
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


def _in_memory(setting: Setting) -> Iterator[Batch]:
    border = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    images = torch.from_numpy(np.pad(setting.array("images"), border, "reflect")).to(setting.device)
    labels = torch.from_numpy(setting.array("labels")).to(setting.device)
    axis = torch.arange(SIZE, device=setting.device)
    while True:
        order = torch.randperm(len(labels), device=setting.device)
        for rows in order.unfold(0, setting.batch, setting.batch):  # whole batches
            corner = torch.randint(2 * PADDING + 1, (2, len(rows), 1), device=setting.device)
            mirrored = torch.rand(len(rows), 1, device=setting.device) < 0.5
            down, across = (
                corner[0] + axis,
                corner[1] + torch.where(mirrored, SIZE - 1 - axis, axis),
            )
            cut = images[rows[:, None, None], down[:, :, None], across[:, None]]
            yield cut.permute(0, 3, 1, 2).float() / 255, labels[rows]


def main(name: str, place: str) -> None:
    """Build, take two steps on the common batch, say so; then train as told, until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the loops print is no answer
    setting = Setting.read(Path(place))
    contender = CONTENDERS[name](setting)
    _say(answers, losses=[contender.on_fixed_batch(), contender.on_fixed_batch()])
    for line in sys.stdin:
        began_at = time.perf_counter()
        contender.train(int(line))
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        _say(answers, seconds=time.perf_counter() - began_at)


def _say(to: TextIO, **answer: Any) -> None:
    print(json.dumps(answer), file=to, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
