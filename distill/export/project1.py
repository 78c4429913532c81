"""Export a course submission: `project1_model.py` and `project1_model.pt`.

The course's grader calls `project1_model()` without an argument, loads the weights with
`strict=True`, normalises the test images by CIFAR-10's usual mean and std, and requires fewer than
5,000,000 parameters. So the code imports only torch, and its network takes normalised images; a
course with another normalisation can have a network for that one.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import torch

from distill.components.build_network import network_table
from distill.errors import UserError
from distill.export import codegen
from distill.export.finished_run import FinishedRun, PredictFn
from distill.export.isolated_grader import Grader
from distill.files.escape_text import visible
from distill.format import counted, interval_text, percent
from distill.runs import read_predictions
from distill.runs.run_folder import early_end, write_bytes, write_text
from students.normalize_images import MEAN, STD
from students.resnet import ResNet

IS_FLOAT = True
MAX_PARAMETERS = 5_000_000  # the network has strictly fewer
CODE, WEIGHTS = "project1_model.py", "project1_model.pt"
COLUMNS = 88  # ruff's default line length


class Normalisation(NamedTuple):
    """Mean and std of red, green and blue by which the recipient normalises images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Normalisation(MEAN, STD)
NONE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class ForNormalisation:
    """This format for a recipient that normalises images in another way than the course does."""

    normalisation: Normalisation
    IS_FLOAT: bool = IS_FLOAT

    def write(self, finished: FinishedRun, folder: Path) -> None:
        """Write code and weights into `folder`; raises errors as the function `write`."""
        write(finished, folder, self.normalisation)

    def read(self, folder: Path) -> PredictFn:
        """Load the network; raises errors as the function `read`."""
        return read(folder, self.normalisation)


def write(finished: FinishedRun, folder: Path, given: Normalisation = CIFAR10) -> None:
    """Write code and weights into `folder`, for images that are normalised by `given`.

    Raises UserError if the network is not a student, or has 5,000,000 parameters or more.
    """
    code, weights = contents(finished, given)
    write_text(folder / CODE, code)
    write_bytes(folder / WEIGHTS, weights)


def contents(finished: FinishedRun, given: Normalisation = CIFAR10) -> tuple[str, bytes]:
    """Return the source of the code file and the content of the weights file.

    The network takes images that are normalised by `given`.

    Raises UserError if the network is not a student, or has 5,000,000 parameters or more.
    """
    _check(finished)
    code = codegen.generate(_student(finished, given), _docstring(finished, given))
    state = {
        new: tensor
        for name, tensor in finished.net.state_dict().items()
        if (new := codegen.generated_weight_name(name)) is not None
    }
    content = io.BytesIO()
    torch.save(state, content)
    return code, content.getvalue()


def read(folder: Path, given: Normalisation = CIFAR10) -> PredictFn:
    """Load the network as the grader does, in a process that cannot import this project.

    Returns a predict function for images in [0, 1], which normalises them by `given`. Raises
    UserError if the network has 5,000,000 parameters or more, Failure if the code fails.
    """
    grader = Grader(folder, CODE, WEIGHTS)
    _check_count(grader.n_parameters, str(folder / CODE))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in given)
    return lambda images: grader((images - mean) / std)


def _check(finished: FinishedRun) -> None:
    if not isinstance(finished.net, ResNet):
        raise UserError(
            f"--format project1 exports a student, a ResNet of fewer than {MAX_PARAMETERS:,} "
            f"parameters; {finished.folder.path} is a {finished.role}, "
            f"{finished.result['network']}.\n"
            "Give the run of a residual student, or another --format."
        )
    if imported := finished.result["teacher"].get("imported"):
        raise UserError(
            "--format project1: the courses allow no weights that were trained elsewhere, and the "
            f"teacher {', '.join(imported)} was imported.\n"
            "Distil from a teacher that train-teacher trained, or give another --format."
        )
    _check_count(finished.n_parameters, str(finished.folder.path))


def _check_count(n: int, what: str) -> None:
    if n >= MAX_PARAMETERS:
        raise UserError(
            f"--format project1: {what} has {n:,} parameters; the course requires fewer than "
            f"{MAX_PARAMETERS:,}.\n"
            "Train a narrower student (`python cli.py params` counts it), or give another --format."
        )


def _student(finished: FinishedRun, given: Normalisation = CIFAR10) -> codegen.StudentSpec:
    table = network_table(finished.recipe, finished.role)
    assert isinstance(finished.net, ResNet)  # checked by `_check`
    return codegen.StudentSpec(
        design=finished.net.design,
        activation=table.activation,
        block_dropout=table.block_dropout,
        head_dropout=table.head_dropout,
        renormalise=renormalise(finished.net, given),
    )


def renormalise(
    net: torch.nn.Module, given: Normalisation = CIFAR10
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return scale and shift [3] that convert the grader's normalisation to the network's own.

    The grader normalises by `given`, mean M and std S: y = (x − M)/S. The network expects
    (x − mean)/std = (y · S + M − mean)/std. Returns None if the two normalisations are the same.
    The conversion cannot be folded into the stem's convolution: its padding adds zeros after
    normalisation.
    """
    mean, std = (torch.as_tensor(b).flatten() for b in (net.normalize.mean, net.normalize.std))
    of_grader = torch.tensor(given.mean), torch.tensor(given.std)
    if torch.equal(mean, of_grader[0]) and torch.equal(std, of_grader[1]):
        return None
    mean, std, graders_mean, graders_std = (t.double() for t in (mean, std, *of_grader))
    return (graders_std / std).tolist(), ((graders_mean - mean) / std).tolist()


def _docstring(finished: FinishedRun, given: Normalisation = CIFAR10) -> str:
    renormalises = (
        "It was trained on images with another mean and std, so its first step renormalises."
        if renormalise(finished.net, given)
        else ""
    )
    early = early_end(finished.result)
    length = (
        f"and finished early, {early}"
        if early
        else f"for {counted(finished.result['epochs'], 'epoch')}"
    )
    facts = (
        f"{visible(finished.result['network'])} with {finished.n_parameters:,} parameters. Its "
        f"accuracy is {percent(finished.top1)} on {_tested(finished)}. Trained by Understudy's "
        f"recipe {visible(finished.result['recipe'])} "
        f"{length}."
    )
    size = finished.image_size
    expects = (
        f"It takes images [B, 3, {size}, {size}]{input_text(given)}, and returns logits "
        f"[B, {len(finished.class_names)}] of "
        f"{', '.join(map(visible, finished.class_names))}. {renormalises}"
    )
    how = (
        "    model = project1_model()\n"
        f'    model.load_state_dict(torch.load("{WEIGHTS}", weights_only=True))\n'
        "    model.eval()"
    )
    texts = ["A residual network for CIFAR-10.", fill(facts, COLUMNS), fill(expects, COLUMNS), how]
    return "\n\n".join(texts)


def input_text(given: Normalisation) -> str:
    """Describe the images that the network takes: how the recipient normalises them."""
    if given == NONE:
        return " in [0, 1], not normalised"
    return f", in [0, 1] and then normalised by mean {given.mean} and std {given.std}"


def _tested(finished: FinishedRun) -> str:
    """Describe the test images and the interval of the accuracy, if their number is known."""
    if finished.interval is None:
        return f"the test images ({read_predictions.NOT_VERIFIED})"
    return (
        f"{finished.n_test:,} test images (95 % interval of this one run, Wilson's: "
        f"{interval_text(finished.interval)})"
    )
