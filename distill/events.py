"""Events that the training loop yields, and the only list of metric names.

The loop prints nothing. It yields `Start`, then `Step`s, `Epoch`s and `Retry`s, then `End`. Once
the first steps are timed, it also yields an `Estimate`. The display and the journal read the same
events. A sweep prunes a trial by no longer iterating over the events.

Metric names, everywhere (journal, display, result, report):

- `loss/<term>`: one term of the objective, unweighted, mean over the batches since the last event;
  `loss/total`: the weighted sum that was minimised.
- `top1` (0..1), `nll` (nats), `ece` (0..1, 15 bins), each with a suffix: `/val` is measured on the
  held-out images, `/val_ema` on the same images with the averaged weights, `/test` on the test
  split. A run with averaged weights has only `/val_ema`, unless `train.validate_both` is true.
- `lr`: the learning rate of the step; `images_per_s`: training images per second, all processes
  together.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

TOTAL = "total"
LR = "lr"
IMAGES_PER_S = "images_per_s"
TRAINING_STEPS = "training steps"  # the task as which each step is reported to a progress callback
MEASURES = ("top1", "nll", "ece")
Split = Literal["train", "val", "val_ema", "test"]
VALIDATED: tuple[Split, ...] = ("val", "val_ema")


def loss_name(term: str) -> str:
    """Return the metric name of a loss term, `loss/kd` for `kd`."""
    return f"loss/{term}"


def measure_name(measure: str, split: Split) -> str:
    """Return the metric name of a measure on a split: `top1/val_ema`."""
    return f"{measure}/{split}"


@dataclass(frozen=True)
class Start:
    """The start of a run: network, data, processes and length."""

    run: str  # the run folder
    role: Literal["teacher", "student"]
    recipe: str  # as it was requested, "kd_cutmix+quickstart"
    network: str  # "ResNet [4, 4, 3] 64-128-256"
    parameters: int
    data: str  # "cifar10", "synthetic" or a path
    train_images: int
    val_images: int
    n_classes: int
    processes: int
    device: str
    precision: str
    batch_size: int  # images of one optimizer step, all processes together
    epochs: int
    steps_per_epoch: int
    first_step: int  # 0, or the steps done before a resumed run continues
    first_epoch: int = 0  # epochs done before first_step
    retries: int = 0  # number of retries after divergence before first_step
    total_steps: int | None = None  # set with train.minutes: the last epoch may be partial
    teacher: str | None = None  # run folder(s) of the teacher
    # On the held-out images, 0..1; on training images if nothing is held out.
    teacher_top1: float | None = None
    teacher_images: int | None = None  # images of teacher_top1; None: unknown, of an old journal
    notes: tuple[str, ...] = ()  # what the user should know before a long training


@dataclass(frozen=True)
class Step:
    """Yielded every `train.log_every` steps: lr, images_per_s, mean losses since the last event."""

    step: int  # optimizer steps done
    epoch: int  # epochs done
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """The estimated time of the whole training, from the first steps of this process.

    Yielded only by runs that take a minute or more.
    """

    step: int  # optimizer steps done
    epoch: int  # epochs done
    steps: int  # number of steps that were timed
    total_s: float  # seconds of training, including the time before a resume
    low_s: float  # the range of total_s
    high_s: float


@dataclass(frozen=True)
class Epoch:
    """Yielded at the end of each epoch, with its mean losses and the held-out measures.

    It has images_per_s too if no Step was yielded in the epoch, because it is short.
    """

    epoch: int  # epochs done, 1 after the first
    step: int
    metrics: dict[str, float]
    is_best: bool  # the best on the held-out images so far; always true if there are none
    elapsed_s: float  # since this process began to train
    remaining_s: float  # estimate to the end of the last epoch


@dataclass(frozen=True)
class Retry:
    """Yielded when the training diverged and went back to the last checkpoint (`train.retries`)."""

    diverged_step: int  # the step, from 1, whose loss or gradient was not finite
    first_step: int  # steps done at the checkpoint
    first_epoch: int  # epochs done
    lr_factor: float  # multiplies every learning rate from now on
    reason: str


@dataclass(frozen=True)
class End:
    """Yielded at the end of a run, after the test split was evaluated."""

    epoch: int  # the epoch of the final weights
    metrics: dict[str, float]  # .../val or .../val_ema of the final weights, and .../test
    parameters: int
    elapsed_s: float  # training time of the whole run, however often resumed
    weights: str  # path of the safetensors file
    # elapsed_s, and the time of preparing the training and of measuring the test split; nan if
    # unknown: in an old journal, or of imported weights.
    total_s: float = math.nan


Event = Start | Step | Estimate | Epoch | Retry | End


def total_steps(start: Start) -> int:
    """Return the number of optimizer steps of the whole run."""
    return start.total_steps or start.epochs * start.steps_per_epoch
