"""Export a course hand-in: `project1_model.py` and `project1_model.pt`.

Its grader calls `project1_model()` without an argument, loads the weights strictly, normalises the
test images by CIFAR-10's customary mean and std, and counts fewer than 5,000,000 parameters. So the
file needs torch alone, and its network takes images that are normalised already.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import torch

from distill.errors import UserError
from distill.export import codegen
from distill.export.finished_run import FinishedRun
from distill.export.formats import PredictFn
from distill.export.grader import Grader
from distill.files.safe_text import visible
from distill.format import counted, interval_text, percent
from distill.runs.run_folder import write_bytes, write_text
from distill.training import build
from students.normalize import MEAN, STD
from students.resnet import ResNet

IS_FLOAT = True
MAX_PARAMETERS = 5_000_000  # the network has strictly fewer
CODE, WEIGHTS = "project1_model.py", "project1_model.pt"
COLUMNS = 88  # ruff's default, for a file that is in no project


def write(finished: FinishedRun, folder: Path) -> None:
    """Raises UserError for a network that is no `ResNet` and for one that is too large."""
    _check(finished)
    student = _student(finished)
    write_text(folder / CODE, codegen.generate(student, _docstring(finished)))
    state = {
        new: tensor
        for name, tensor in finished.net.state_dict().items()
        if (new := codegen.generated_name(name)) is not None
    }
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(folder / WEIGHTS, content.getvalue())


def read(folder: Path) -> PredictFn:
    """As the grader does, in a process without this project.

    Raises UserError where the grader would count too many parameters, Failure where the file fails.
    """
    grader = Grader(folder, CODE, WEIGHTS)
    _check_count(grader.n_parameters, str(folder / CODE))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return lambda images: grader((images - mean) / std)


def _check(finished: FinishedRun) -> None:
    if not isinstance(finished.net, ResNet):
        raise UserError(
            f"--format project1 hands in a student, a ResNet of fewer than {MAX_PARAMETERS:,} "
            f"parameters; {finished.folder.path} is a teacher, {finished.result['network']}.\n"
            "Give the run of a student, or another --format."
        )
    _check_count(finished.n_parameters, str(finished.folder.path))


def _check_count(n: int, what: str) -> None:
    if n >= MAX_PARAMETERS:
        raise UserError(
            f"--format project1: {what} has {n:,} parameters; the course wants fewer than "
            f"{MAX_PARAMETERS:,}.\n"
            "Train a narrower student, as `python cli.py params` counts it, or give another "
            "--format."
        )


def _student(finished: FinishedRun) -> codegen.StudentSpec:
    table = build.network_table(finished.recipe, finished.role)
    assert isinstance(finished.net, ResNet)  # as `_check` made sure
    return codegen.StudentSpec(
        design=finished.net.design,
        activation=table.activation,
        block_dropout=table.block_dropout,
        head_dropout=table.head_dropout,
        renormalise=renormalise(finished.net),
    )


def renormalise(net: torch.nn.Module) -> tuple[Sequence[float], Sequence[float]] | None:
    """Scale and shift [3] that make of images normalised for the grader those of this network.

    ((x − m)/s · S + M − mean)/std with M, S the grader's; None where both are the same. It cannot
    be folded into the stem's kernels: they see zeros beyond the border, and those stay zeros.
    """
    mean, std = (torch.as_tensor(b).flatten() for b in (net.normalize.mean, net.normalize.std))
    ours = torch.tensor(MEAN), torch.tensor(STD)
    if torch.equal(mean, ours[0]) and torch.equal(std, ours[1]):
        return None
    mean, std, graders_mean, graders_std = (t.double() for t in (mean, std, *ours))
    return (graders_std / std).tolist(), ((graders_mean - mean) / std).tolist()


def _docstring(finished: FinishedRun) -> str:
    folded = (
        "Its weights learnt on images with another mean and std: its first step renormalises."
        if renormalise(finished.net)
        else ""
    )
    facts = (
        f"{visible(finished.result['network'])} with {finished.n_parameters:,} parameters. Right "
        f"on {percent(finished.top1)} of {_tested(finished)}. Trained by Understudy's recipe "
        f"{visible(finished.result['recipe'])} for {counted(finished.result['epochs'], 'epoch')}."
    )
    expects = (
        f"It takes images [B, 3, 32, 32], in [0, 1] and then normalised by mean {MEAN} and std "
        f"{STD}, and returns logits [B, {len(finished.class_names)}] of "
        f"{', '.join(map(visible, finished.class_names))}. {folded}"
    )
    how = (
        "    model = project1_model()\n"
        f'    model.load_state_dict(torch.load("{WEIGHTS}", weights_only=True))\n'
        "    model.eval()"
    )
    texts = ["A residual network for CIFAR-10.", fill(facts, COLUMNS), fill(expects, COLUMNS), how]
    return "\n\n".join(texts)


def _tested(finished: FinishedRun) -> str:
    """How many test images, and how sure that makes it; less where nothing tells."""
    if finished.interval is None:
        return "the test images"
    return (
        f"{finished.n_test:,} test images (95 % interval of this one run, Wilson's: "
        f"{interval_text(finished.interval)})"
    )
