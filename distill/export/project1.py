"""Export a course submission: `project1_model.py` and `project1_model.pt`.

The course's grader calls `project1_model()` without an argument, loads the weights with
`strict=True`, normalises the test images by CIFAR-10's usual mean and std, and requires fewer than
5,000,000 parameters. So the code imports only torch, and its network takes normalised images.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import torch

from distill.components.build_network import network_table
from distill.errors import UserError
from distill.export import codegen
from distill.export.finished_run import FinishedRun, PredictFn
from distill.export.isolated_grader import Grader
from distill.files.escape_text import visible
from distill.format import counted, interval_text, percent
from distill.runs.run_folder import write_bytes, write_text
from students.normalize_images import MEAN, STD
from students.resnet import ResNet

IS_FLOAT = True
MAX_PARAMETERS = 5_000_000  # the network has strictly fewer
CODE, WEIGHTS = "project1_model.py", "project1_model.pt"
COLUMNS = 88  # ruff's default line length


def write(finished: FinishedRun, folder: Path) -> None:
    """Write code and weights into `folder`.

    Raises UserError if the network is not a student, or has 5,000,000 parameters or more.
    """
    code, weights = contents(finished)
    write_text(folder / CODE, code)
    write_bytes(folder / WEIGHTS, weights)


def contents(finished: FinishedRun) -> tuple[str, bytes]:
    """Return the source of the code file and the content of the weights file.

    Raises UserError if the network is not a student, or has 5,000,000 parameters or more.
    """
    _check(finished)
    code = codegen.generate(_student(finished), _docstring(finished))
    state = {
        new: tensor
        for name, tensor in finished.net.state_dict().items()
        if (new := codegen.generated_name(name)) is not None
    }
    content = io.BytesIO()
    torch.save(state, content)
    return code, content.getvalue()


def read(folder: Path) -> PredictFn:
    """Load the network as the grader does, in a process that cannot import this project.

    Returns a predict function for images in [0, 1]. Raises UserError if the network has 5,000,000
    parameters or more, Failure if the code fails.
    """
    grader = Grader(folder, CODE, WEIGHTS)
    _check_count(grader.n_parameters, str(folder / CODE))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
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


def _student(finished: FinishedRun) -> codegen.StudentSpec:
    table = network_table(finished.recipe, finished.role)
    assert isinstance(finished.net, ResNet)  # checked by `_check`
    return codegen.StudentSpec(
        design=finished.net.design,
        activation=table.activation,
        block_dropout=table.block_dropout,
        head_dropout=table.head_dropout,
        renormalise=renormalise(finished.net),
    )


def renormalise(net: torch.nn.Module) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return scale and shift [3] that convert the grader's normalisation to the network's own.

    The grader normalises by mean M and std S: y = (x − M)/S. The network expects (x − mean)/std =
    (y · S + M − mean)/std. Returns None if the two normalisations are the same. The conversion
    cannot be folded into the stem's convolution: its padding adds zeros after normalisation.
    """
    mean, std = (torch.as_tensor(b).flatten() for b in (net.normalize.mean, net.normalize.std))
    of_grader = torch.tensor(MEAN), torch.tensor(STD)
    if torch.equal(mean, of_grader[0]) and torch.equal(std, of_grader[1]):
        return None
    mean, std, graders_mean, graders_std = (t.double() for t in (mean, std, *of_grader))
    return (graders_std / std).tolist(), ((graders_mean - mean) / std).tolist()


def _docstring(finished: FinishedRun) -> str:
    renormalises = (
        "It was trained on images with another mean and std, so its first step renormalises."
        if renormalise(finished.net)
        else ""
    )
    facts = (
        f"{visible(finished.result['network'])} with {finished.n_parameters:,} parameters. Its "
        f"accuracy is {percent(finished.top1)} on {_tested(finished)}. Trained by Understudy's "
        f"recipe {visible(finished.result['recipe'])} for "
        f"{counted(finished.result['epochs'], 'epoch')}."
    )
    size = finished.image_size
    expects = (
        f"It takes images [B, 3, {size}, {size}], in [0, 1] and then normalised by mean {MEAN} and "
        f"std {STD}, and returns logits [B, {len(finished.class_names)}] of "
        f"{', '.join(map(visible, finished.class_names))}. {renormalises}"
    )
    how = (
        "    model = project1_model()\n"
        f'    model.load_state_dict(torch.load("{WEIGHTS}", weights_only=True))\n'
        "    model.eval()"
    )
    texts = ["A residual network for CIFAR-10.", fill(facts, COLUMNS), fill(expects, COLUMNS), how]
    return "\n\n".join(texts)


def _tested(finished: FinishedRun) -> str:
    """Describe the test images and the interval of the accuracy, if their number is known."""
    if finished.interval is None:
        return "the test images"
    return (
        f"{finished.n_test:,} test images (95 % interval of this one run, Wilson's: "
        f"{interval_text(finished.interval)})"
    )
