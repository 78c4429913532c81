"""The cells of the CRD paper's table on CIFAR-100: their recipes, and what was published.

A cell is a teacher, a student and a method, `resnet56/resnet20/kd`. `published_table.toml` has the
published accuracies with their sources.
"""

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError
from networks import network_catalogue

TABLE = Path(__file__).with_name("published_table.toml")
TEACHER_RECIPE, STUDENT_RECIPE = "crd_cifar100_teacher", "crd_cifar100"
EPOCHS = 240  # of the protocol
MILESTONES = (150, 180, 210)
FIRST_STAGE = 30  # epochs of the methods in two stages, before the others
TWO_STAGES = ("ab", "fsp")
LOW_RATE = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # trained with a rate of 0.01
METHODS = (
    "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd",
    "crd_kd", "dkd", "dist",
)  # fmt: skip


class Cell(NamedTuple):
    """One figure of the table."""

    teacher: str
    student: str
    method: str

    @property
    def pair(self) -> str:
        """The two networks, `resnet56/resnet20`."""
        return f"{self.teacher}/{self.student}"

    @property
    def name(self) -> str:
        """The cell as a file name, `resnet56_resnet20_kd`."""
        return "_".join(self)

    def __str__(self) -> str:
        return "/".join(self)


class Length(NamedTuple):
    """The epochs of a training, and those after which its learning rate is divided by 10."""

    first_stage: int  # epochs of a first stage without the labels, which precedes the others
    epochs: int  # all of them
    milestones: tuple[int, ...]

    def settings(self) -> list[str]:
        """Return the `key=value` settings of a recipe."""
        if not self.milestones:
            return [f"train.epochs={self.epochs}", "optim.schedule=constant", "optim.milestones=[]"]
        milestones = ",".join(map(str, self.milestones))
        return [f"train.epochs={self.epochs}", f"optim.milestones=[{milestones}]"]


@cache
def published() -> dict[str, Any]:
    """Return the content of `published_table.toml`; accuracies in percent."""
    return tomllib.loads(TABLE.read_text())


def cells() -> list[Cell]:
    """Return every cell for which an accuracy was published, in the order of the table."""
    return [
        Cell(teacher, student, method)
        for pair, methods in published()["pairs"].items()
        for teacher, student in [pair.split("/")]
        for method in methods
    ]


def parse(text: str) -> Cell:
    """Return the cell `TEACHER/STUDENT/METHOD`. Raises UserError, with all faults, if unknown."""
    parts = text.split("/")
    if len(parts) != 3:
        raise UserError(f"{text} is not a cell; type TEACHER/STUDENT/METHOD: resnet56/resnet20/kd")
    cell = Cell(parts[0], parts[1], parts[2])
    if faults := list(_faults(cell)):
        raise UserError(f"{text} is not a cell of the table:\n  " + "\n  ".join(faults))
    return cell


def _faults(cell: Cell) -> Iterator[str]:
    table = published()
    known = {"teacher": table["teachers"], "student": table["students"], "method": METHODS}
    unknown = [(role, name) for role, name in cell._asdict().items() if name not in known[role]]
    for role, name in unknown:
        near = get_close_matches(name, known[role], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"{name} is not a {role} of the table; allowed: {', '.join(known[role])}{hint}"
    if unknown:
        return
    if cell.pair not in table["pairs"]:
        yield f"{cell.pair} is not a pair of the table; allowed: {', '.join(table['pairs'])}"
    elif cell.method == "fsp" and cell not in cells():
        yield f"fsp needs maps of equal channels, which the networks of {cell.pair} do not have"
    elif cell.method == "dkd" and cell not in cells():
        yield f"no beta of dkd was published for {cell.pair}"


def accuracy(cell: Cell) -> float | None:
    """Return a cell's published accuracy, 0..1; None if there is none."""
    percent = published()["pairs"][cell.pair].get(cell.method)
    return None if percent is None else round(percent / 100, 6)


def alone(role: str, network: str) -> float:
    """Return the published accuracy, 0..1, of a "teacher" or "student" trained with the labels."""
    return round(float(published()[f"{role}s"][network]) / 100, 6)


def source(cell: Cell) -> str:
    """Return where a cell's accuracy was published."""
    sources: dict[str, str] = published()["sources"]
    return sources.get(cell.method, sources["crd"])


def length(method: str | None, epochs: int = EPOCHS) -> Length:
    """Return the epochs of a method's training, None for the labels alone, in proportion to 240.

    A milestone is rounded to a whole epoch, halves up, and is at least 1; milestones that coincide,
    or are not before the end, are left out. A method in two stages has a first one of 30 of 240
    epochs, at least one, which is added.
    """
    first = max(1, _scaled(FIRST_STAGE, epochs)) if method in TWO_STAGES else 0
    scaled = sorted({max(1, _scaled(milestone, epochs)) for milestone in MILESTONES})
    return Length(first, first + epochs, tuple(first + m for m in scaled if m < epochs))


def _scaled(epoch: int, epochs: int) -> int:
    return (2 * epoch * epochs + EPOCHS) // (2 * EPOCHS)


def student_recipe(cell: Cell) -> str:
    """Return the recipe of a cell's student."""
    return STUDENT_RECIPE if cell.method == "kd" else f"{STUDENT_RECIPE}+published_{cell.method}"


def student_settings(cell: Cell, epochs: int = EPOCHS) -> list[str]:
    """Return the `key=value` settings of a cell's student, beside those of its recipe."""
    training = length(cell.method, epochs)
    settings = [*_network("student", cell.student), *training.settings(), *_taps(cell)]
    if training.first_stage:
        share = training.first_stage / training.epochs
        settings += [f"loss.{cell.method}.when.end={share}", f"loss.hard.when.begin={share}"]
    if cell.method == "dkd":
        settings.append(f"loss.dkd.beta={published()['dkd_beta'][cell.pair]}")
    return settings


def control_settings(cell: Cell, epochs: int = EPOCHS) -> list[str]:
    """Return the settings of a cell's control, the student trained with the labels alone."""
    labels = ["loss.kd=false", "loss.hard.weight=1.0"]
    return [*_network("student", cell.student), *length(None, epochs).settings(), *labels]


def teacher_settings(cell: Cell, epochs: int = EPOCHS) -> list[str]:
    """Return the settings of a cell's teacher; only the last epoch's weights are saved."""
    training = length(None, epochs).settings()
    return [*_network("teacher", cell.teacher), *training, f"train.keep_epochs={epochs}"]


def _network(role: str, name: str) -> list[str]:
    rate = ["optim.lr=0.01"] if name in LOW_RATE else []
    return [f"{role}.network={name}", *rate]


def _taps(cell: Cell) -> list[str]:
    """Return the stages that NST reads, if the networks do not have the recipe's three.

    The two networks of each pair of the table have equal numbers of stages, and the other methods
    read all of them, or the last one, by default.
    """
    fixed = network_catalogue.FIXED.get(cell.student)
    if cell.method != "nst" or fixed is None or fixed.stages == 3:
        return []
    stages = ",".join(f'"stages.{i}"' for i in range(fixed.stages))
    return [f"loss.nst.{role}_taps=[{stages}]" for role in ("student", "teacher")]
