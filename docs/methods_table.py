"""Generate the table of `docs/methods.md`: the cost of each loss term, and its test.

    python -m docs.methods_table            count, time (some minutes on two cores), write
    python -m docs.methods_table --check    exit 1 if a count differs from the one in the file

For each term, its parameters and peak memory are counted on torch's meta device, with the networks
of the term's recipe (WRN-28-10 and a ResNet under 5M parameters). The parameters are those that the
term adds to training; the memory is that of its forward and backward, without the networks' feature
maps. The term's forward and backward are timed in turn with whole steps, for that recipe with
`two_cores`, synthetic images and an untrained teacher.
"""

import argparse
import ast
import re
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.stages import prepared
from distill.components.build_loss_terms import build_objective, required_taps
from distill.components.build_network import build_network
from distill.errors import UserError
from distill.losses.objective import LossInputs, UnmixedTeacherLogits
from distill.models.features import FeatureExtractor, tap_shapes
from distill.recipe import recipe_variants, recipes
from distill.recipe.loss_schema import Losses
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import write_text
from distill.teacher.linear_classifier import class_weights
from distill.training import loop

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
COLUMNS = (
    "term",
    "paper",
    "parameters it adds",
    "MiB at batch 128",
    "MiB at batch 512",
    "ms per step",
    "share of the step",
    "test",
)
COUNTED = 5  # the first 5 columns, and the last one, do not depend on the machine
RECIPES = {"hard": "student_alone"}  # every other term has a recipe of the same name
# Overrides of a term's recipe for timing: simkd's projector has the width of two_cores' teacher,
# and fsp's student its channels.
SMALL = {"simkd": ["student.projector_width=128"], "fsp": ["student.width=32"]}
CLASSES, SIDE = 10, 32
LABELS = torch.arange(45_000) % CLASSES
ROUNDS, WARMUP = 5, 2


@dataclass(frozen=True)
class Count:
    """The cost of a loss term."""

    parameters: int  # that the term adds to training
    bytes_at: dict[int, int]  # peak memory of its forward and backward, by batch size


class Held(TorchDispatchMode):
    """Tracks the total size of all live tensors that are created inside this mode.

    `now` is the current number of bytes, `peak` the largest so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return result

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Exclude these tensors from the count."""
        self.alive.update(t.untyped_storage()._cdata for t in tensors)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def counted(name: str) -> Count:
    """Compute the cost of the loss term `name`, with its recipe's networks on the meta device."""
    recipe = recipes.load(RECIPES.get(name, name)).recipe
    recipe = recipe_variants.with_teacher(recipe, ())  # the teacher of teacher_wrn by default
    with torch.device("meta"):
        student = FeatureExtractor(*_with_taps(recipe, "student"))
        teacher = FeatureExtractor(*_with_taps(recipe, "teacher"))
        student_shapes, teacher_shapes = tap_shapes(student, SIDE), tap_shapes(teacher, SIDE)
        objective = build_objective(
            recipe,
            student_shapes=student_shapes,
            teacher_shapes=teacher_shapes,
            teacher_class_weights=class_weights(teacher.net),
            labels=LABELS,
        )
    term = objective.terms[name].loss
    module = term if isinstance(term, nn.Module) else nn.Module()
    trained = [p for p in module.to("meta").parameters() if p.requires_grad]
    projector = [p for n, p in student.net.named_parameters() if n.startswith("projector")]
    inputs = {batch: _inputs(batch, student_shapes, teacher_shapes) for batch in (128, 512)}
    return Count(
        sum(p.numel() for p in [*trained, *projector]),
        {batch: _peak(term, inputs[batch], module) for batch in inputs},
    )


def _with_taps(recipe: Recipe, role: Any) -> tuple[nn.Module, list[str]]:
    net = build_network(recipe, role, CLASSES)
    return net, required_taps(recipe, role, net)


def _inputs(
    batch: int, student_shapes: dict[str, Any], teacher_shapes: dict[str, Any]
) -> LossInputs:
    """Return loss inputs on the meta device, which have shapes but no values.

    `student_shapes`, `teacher_shapes`: the shapes of the feature maps for one image, by name.
    """

    def maps(shapes: dict[str, Any], *, requires_grad: bool) -> dict[str, Tensor]:
        return {
            name: torch.empty(batch, *shape, device="meta", requires_grad=requires_grad)
            for name, shape in shapes.items()
        }

    logits, teacher, own = (torch.empty(batch, CLASSES, device="meta") for _ in range(3))
    return LossInputs(
        logits.requires_grad_(),
        teacher,
        teacher,
        maps(student_shapes, requires_grad=True),
        maps(teacher_shapes, requires_grad=False),
        torch.empty(batch, dtype=torch.int64, device="meta"),
        UnmixedTeacherLogits(own, own, torch.empty(batch, 1, device="meta")),
    )


def _peak(term: Any, inputs: LossInputs, module: nn.Module) -> int:
    """Return the peak bytes of a loss term's forward and backward, not counting its inputs and
    parameters.
    """
    held = Held()
    tensors = [t for t in tree_leaves(vars(inputs)) if isinstance(t, Tensor)]
    held.ignore([*tensors, *module.parameters(), *module.buffers()])
    with held:
        term(inputs).backward()
    return held.peak


def timed(name: str) -> tuple[float, float]:
    """Return the median milliseconds of the loss term `name`, forward and backward, and of a whole
    training step.
    """
    recipe = recipes.load(
        f"{RECIPES.get(name, name)}+two_cores",
        ["data.source=synthetic", "data.train_images=2000", *SMALL.get(name, [])],
    ).recipe
    run = prepared(recipe)
    view, rows = run.loader.batches(0)[0]
    batch = run.loader.batch(view, rows)
    term, spans = run.loss.terms[name], ([], [])  # type: ignore[var-annotated]
    teacher = run.teacher(batch, term.needs)
    student = run.model_ddp(batch.images)
    for _ in range(WARMUP + ROUNDS):
        leaves = {tap: t.detach().requires_grad_() for tap, t in student.taps.items()}
        inputs = LossInputs(
            student.logits.detach().requires_grad_(), batch.targets, teacher.logits, leaves,
            teacher.taps, rows, teacher.unmixed,
        )  # fmt: skip
        began_at = time.perf_counter()
        term.loss(inputs).backward()
        between_at = time.perf_counter()
        loop.step(run, 0)
        spans[0].append(between_at - began_at)
        spans[1].append(time.perf_counter() - between_at)
    own, whole = (1000 * median(spans_s[WARMUP:]) for spans_s in spans)
    return own, whole


def row(name: str) -> list[str]:
    """Return the table's cells for the loss term `name`; those with times are empty.

    Raises UserError if the term has no test file or its docstring names no paper.
    """
    file = f"distill/losses/{name}.py"
    cost = counted(name)
    test = f"tests/losses/test_{name}.py"
    if not (ROOT / test).exists():
        raise UserError(f"{test} is missing: loss.{name} has no test.")
    mebibytes = [f"{size / 2**20:.1f}" for size in cost.bytes_at.values()]
    return [
        f"[`{name}`](../{file})",
        paper(ROOT / file),
        f"{cost.parameters:,}",
        *mebibytes,
        "",
        "",
        f"[test_{name}.py](../{test})",
    ]


def paper(file: Path) -> str:
    """Return the first arXiv number or DOI in a file's docstring.

    Raises UserError if there is none.
    """
    head = ast.get_docstring(ast.parse(file.read_text())) or ""
    found = re.search(r"arXiv\s+(\d{4}\.\d{4,5})|(10\.\d{4,9}/[\w./-]+\w)", head)
    if found is None:
        raise UserError(f"The docstring of {file} has no arXiv number or DOI.")
    return f"arXiv {found[1]}" if found[1] else f"DOI {found[2]}"


def stale(page: str) -> list[str]:
    """Return the loss terms whose cells, except for times, differ from those in the text `page`."""
    rows = {cells[0]: cells for cells in _cells(page)}
    return [
        name
        for name in Losses.model_fields
        if (fresh := row(name)) and _fixed(rows.get(fresh[0], [])) != _fixed(fresh)
    ]


def _fixed(cells: list[str]) -> list[str]:
    return cells[:COUNTED] + cells[-1:]


def _cells(page: str) -> list[list[str]]:
    between = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in between.splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table() -> str:
    """Return the whole table in Markdown, with times measured on this machine."""
    lines = [COLUMNS, ("---", "---", *("---:",) * 5, "---")]
    for name in Losses.model_fields:
        cells = row(name)
        own, whole = timed(name)
        cells[COUNTED:-1] = [f"{own:.1f}", f"{own / whole:.1%}"]
        lines.append(tuple(cells))  # type: ignore[arg-type]
        print(*cells, sep="  ", file=sys.stderr)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m docs.methods_table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    given = parser.parse_args(arguments)
    page = PAGE.read_text()
    if given.check:
        if changed := stale(page):
            sys.exit(
                f"docs/methods.md is stale: {', '.join(changed)}.\n"
                "Type: python -m docs.methods_table"
            )
        return
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(PAGE, f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
