"""The Python interface: load a finished run, predict, evaluate, and train from a recipe.

`from distill import load_run, predict, evaluate, train_teacher, train_student`. The functions call
those behind the commands of `cli.py`, and print nothing. docs/python.md has an example of each.

A faulty request raises UserError, and a valid one that cannot be carried out raises Failure; both
have a message that says what to do. A recipe or a run folder runs no code of a network of its own,
unless its file is named in `overrides` or in the environment variable UNDERSTUDY_CODE.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from distill import metrics
from distill.components.allow_user_code import allow_user_code
from distill.components.build_accelerator import evaluation_device
from distill.components.build_network import load_trained, to_device
from distill.data.image_set import CHANNELS
from distill.errors import Failure, UserError
from distill.evaluation import evaluate_run, predict_split
from distill.events import Event
from distill.recipe import check_recipe_role, recipes
from distill.recipe.overrides import overrides_and_notes
from distill.recipe.recipes import ResolvedRecipe
from distill.recipe.validation import value_text
from distill.runs import check_runs_match, run_folder
from distill.runs.journal import Journal
from distill.runs.run_folder import Role, RunFolder
from distill.training.run import request_training, train_and_test

__all__ = [
    "Failure",
    "TrainedRun",
    "UserError",
    "evaluate",
    "load_run",
    "predict",
    "train_student",
    "train_teacher",
]

AnyPath = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run with its network, as `load_run` returns it."""

    path: Path  # of the run folder
    # Maps images [B, 3, S, S], float32 in [0, 1], to logits [B, C]. It normalises them itself.
    network: nn.Module
    class_names: tuple[str, ...]  # C names; column k of the logits is class k
    image_size: int  # S, height and width of the images in pixels
    device: torch.device  # of the network


def load_run(run: AnyPath, *, device: str | torch.device | None = None) -> TrainedRun:
    """Load a finished run's network, student or teacher, with its final weights, in eval mode.

    `run`: the run folder. `device`: such as "cpu" or "cuda"; by default a GPU if there is one.
    Raises UserError if there is no finished run, if its files were changed after it finished, or
    if its network is code that is not allowed.

        student = load_run("runs/student")
        logits = student.network(torch.rand(8, 3, student.image_size, student.image_size))
    """
    folder = run_folder.open_finished(Path(run))
    chosen = evaluation_device() if device is None else torch.device(device)
    network = to_device(load_trained(folder), chosen)
    class_names = tuple(folder.result()["class_names"])
    size = recipes.read(folder.recipe).data.image_size
    return TrainedRun(folder.path, network, class_names, size, chosen)


def predict(
    run: TrainedRun | AnyPath, images: ArrayLike | Tensor, *, mirror: bool = False
) -> NDArray[np.float64]:
    """Return the probability of each class, [N, C], computed in float32; each row sums to 1.

    `images`: [N, 3, S, S] or [N, S, S, 3], RGB, uint8 or floats in [0, 1], not normalised; an
    array, a tensor, or a list of images of equal size. `mirror`: average the logits over each
    image and its mirror image. Raises UserError if the images have another shape, type or range,
    if the network returns numbers that are not finite, or as `load_run`.

        probabilities = predict("runs/student", images)
        names = [student.class_names[k] for k in probabilities.argmax(axis=1)]
    """
    loaded = run if isinstance(run, TrainedRun) else load_run(run)
    pixels = _as_pixels(images, loaded.image_size)
    network = predict_split.FlipTTA(loaded.network) if mirror else loaded.network
    was_training = loaded.network.training
    network.eval()
    logits = predict_split.predict(network, pixels, loaded.device)
    loaded.network.train(was_training)
    predict_split.check_finite(logits, RunFolder(loaded.path))
    return metrics.probabilities(logits.cpu().numpy())


def evaluate(
    run: TrainedRun | AnyPath,
    data: AnyPath | None = None,
    *,
    against: TrainedRun | AnyPath | None = None,
    mirror: bool = False,
) -> dict[str, Any]:
    """Measure a finished run on a test split, as the command `evaluate --json` does.

    `data`: "cifar10", "cifar100", "synthetic" or the path of a data set with the run's classes; by
    default the run's own. `against`: another finished run to compare with by McNemar's test.
    `mirror`: also measure the mean over each image and its mirror image.

    The result has `n` (images), `top1` and `top5` (0..1), `nll` (nats) and `ece` (0..1), each
    measure with its 95 % interval [low, high], such as `top1_interval`; `per_class`, `confusion`,
    and on request `against` and `mirror`. What cannot be measured is None, and `absent` says why.
    Call it before or after a training, not while the training's events are read.

    Raises UserError if the run is not finished, or if the images are missing, have other classes or
    are no longer those of the run.

        print(f"{evaluate('runs/student')['top1']:.2%}")
    """
    options = evaluate_run.EvalOptions(
        data=None if data is None else fspath(data),
        against=None if against is None else _folder(against).path,
        mirror=mirror,
    )
    return evaluate_run.evaluate_run(_folder(run), options)


def train_teacher(
    recipe: AnyPath = "teacher_wrn",
    *,
    out: AnyPath,
    data: AnyPath | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Generator[Event]:
    """Train a teacher from scratch, as the command `train-teacher` does; yield its events.

    The arguments and errors are those of `train_student`.
    """
    resolved = _resolve(recipe, data, overrides, [])
    check_recipe_role.check_teacher(resolved)
    return _train("teacher", resolved, Path(out), resume)


def train_student(
    recipe: AnyPath = "kd_cutmix",
    *,
    out: AnyPath,
    teacher: AnyPath | Sequence[AnyPath] = (),
    data: AnyPath | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Generator[Event]:
    """Train a student, as the command `distill` does; yield its events (`distill.events`).

    Training happens while the events are read, one after the other; it stops if they are not. The
    request is checked at once.

    `recipe`: a name, `a+b+c`, or a path that ends in .toml. `out`: the run folder. `teacher`: the
    folder of a finished run, or several for an ensemble; by default the best teacher that fits.
    `data`: as in `evaluate`. `overrides`: values of the recipe by key, `{"train.epochs": 2}`; False
    removes a table. `resume`: continue the run in `out` from its last checkpoint; a finished run
    yields no event.

    Raises UserError if the request is invalid, at once or when the first event is read. While
    events are read, raises Failure, `distill.training.divergence.Diverged` or
    `distill.models.out_of_memory.OutOfMemory`; the run can then be resumed, as after
    KeyboardInterrupt.

        for event in train_student("kd_cutmix+quickstart", teacher="runs/teacher", out="runs/a"):
            if isinstance(event, Epoch):
                print(event.epoch, event.metrics["top1/val_ema"])
    """
    teachers = [teacher] if isinstance(teacher, str | PathLike) else teacher
    resolved = _resolve(recipe, data, overrides, [fspath(path) for path in teachers])
    check_recipe_role.check_student(resolved)
    return _train("student", resolved, Path(out), resume)


def _folder(run: TrainedRun | AnyPath) -> RunFolder:
    return run_folder.open_finished(run.path if isinstance(run, TrainedRun) else Path(run))


def _resolve(
    recipe: AnyPath,
    data: AnyPath | None,
    overrides: Mapping[str, Any] | None,
    teachers: Sequence[str],
) -> ResolvedRecipe:
    """Load a recipe with overrides; allow the code of networks that the overrides name."""
    plain = {key: _plain(value) for key, value in (overrides or {}).items()}
    texts = [f"{key}={value_text(value)}" for key, value in plain.items()]
    source = None if data is None else fspath(data)
    combined, conflicts = overrides_and_notes(source, texts, teachers)
    if conflicts:
        raise UserError("\n".join([*conflicts, "Give one of the two."]))
    allow_user_code(f"{key}={value}" for key, value in plain.items())
    return recipes.load(fspath(recipe), combined)


def _plain(value: Any) -> Any:
    """Return a path as text, and lists of paths as lists of text; other values unchanged."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return fspath(value) if isinstance(value, PathLike) else value


def _train(role: Role, resolved: ResolvedRecipe, out: Path, resume: bool) -> Generator[Event]:
    folder = RunFolder(out)
    if resume and folder.is_finished:
        run_folder.check_role(folder, role)
        check_runs_match.check_same(folder, resolved.recipe)
    else:
        run_folder.check_out(folder, resume)
    return _recorded_events(role, resolved, folder, resume)


def _recorded_events(
    role: Role, resolved: ResolvedRecipe, folder: RunFolder, resume: bool
) -> Generator[Event]:
    """Train; write each event to the run's journal, in the first process only, and yield it."""
    journal = Journal(folder.journal)
    request = request_training(role, resolved, folder.path, resume)
    with closing(train_and_test(request)) as events:
        for event in events:
            if PartialState().is_main_process:
                journal(event)
            yield event


def _as_pixels(images: ArrayLike | Tensor, size: int) -> Tensor:
    """Return images as a tensor [N, 3, size, size], uint8 or float32 in [0, 1].

    Raises UserError with every fault.
    """
    pixels = images.detach() if isinstance(images, Tensor) else _tensor_of(images)
    if pixels.ndim == 4 and pixels.shape[3] == CHANNELS != pixels.shape[1]:
        pixels = pixels.permute(0, 3, 1, 2)
    faults = [*_shape_faults(pixels, size), *_value_faults(pixels)]
    if faults:
        raise UserError("\n".join(faults))
    return pixels.float() if pixels.is_floating_point() else pixels


def _tensor_of(images: ArrayLike) -> Tensor:
    """Convert an array or a list of images to a tensor. Raises UserError if that is impossible."""
    try:
        array = np.asarray(images)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as fault:
        raise UserError(
            f"the images are not an array of numbers: {fault}\n"
            "Give one array or tensor, or a list of images of equal size."
        ) from fault


def _shape_faults(pixels: Tensor, size: int) -> Iterator[str]:
    wanted = f"[N, {CHANNELS}, {size}, {size}] or [N, {size}, {size}, {CHANNELS}]"
    shape = list(pixels.shape)
    if shape[1:] == [CHANNELS, size, size]:
        return
    if pixels.ndim == 4 and shape[1] == CHANNELS:
        advice = f"resize them to the {size}x{size} pixels of the run"
    elif pixels.ndim == 3 and CHANNELS in (shape[0], shape[2]):
        advice = "for one image give images[None]"
    else:
        advice = "RGB images have three channels"
    yield f"the images have the shape {shape}, not {wanted}: {advice}."


def _value_faults(pixels: Tensor) -> Iterator[str]:
    if pixels.dtype == torch.uint8 or not pixels.numel():
        return
    if not pixels.is_floating_point():
        yield f"the images are {pixels.dtype}: give uint8 in 0..255, or floats in [0, 1]."
        return
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also NaN
        yield (
            f"the images have values from {low:.4g} to {high:.4g}: floats must be in [0, 1], and "
            "not normalised, since the network normalises them itself; pixels in 0..255 must be "
            "uint8."
        )
