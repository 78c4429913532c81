"""The table of `docs/methods.md`: what each term of the loss costs, and the test that pins it.

    python -m docs.methods            count, time (some minutes on two cores), write
    python -m docs.methods --check    exit 1 where what was counted is not what the file says

Counted for the shipped pair, the recipe's own (WRN-28-10 to a ResNet under 5M parameters), on
torch's meta device: parameters that the term adds to training, and the peak of what its forward
and backward hold beside the networks' maps. Timed for that recipe's `two_cores` version with
synthetic images and an untrained teacher: the term's forward and backward, and the whole step,
in turns.
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
from distill.components.loss_terms import build_objective, required_taps
from distill.components.network import build_network
from distill.errors import UserError
from distill.losses.objective import LossInputs, UnmixedTeacherLogits
from distill.models.features import FeatureExtractor, tap_shapes
from distill.recipe import recipes
from distill.recipe.loss_schema import Losses
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import write_text
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
    "ms a step",
    "share of the step",
    "pinned by",
)
COUNTED = 5  # columns that do not depend on the machine, but for the last
RECIPES = {"hard": "student_alone"}  # a term's recipe has its name, but for this one
SMALL = {"simkd": ["student.projector_width=128"]}  # of the teacher of `two_cores`
CLASSES, SIDE = 10, 32
LABELS = torch.arange(45_000) % CLASSES
ROUNDS, WARMUP = 5, 2


@dataclass(frozen=True)
class Count:
    """What a term costs in the shipped pair."""

    parameters: int
    bytes_at: dict[int, int]  # by batch


class Held(TorchDispatchMode):
    """The bytes of all tensors that are made and alive inside this mode, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._hold(each.untyped_storage())
        return made

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Those are somebody else's."""
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
    """The cost of a term in its recipe's own pair, on the meta device."""
    recipe = recipes.load(RECIPES.get(name, name)).recipe
    recipe = recipes.with_teacher(recipe, ())  # teacher_wrn's, where it names none
    with torch.device("meta"):
        student = FeatureExtractor(*_with_taps(recipe, "student"))
        teacher = FeatureExtractor(*_with_taps(recipe, "teacher"))
        ours, theirs = tap_shapes(student, SIDE), tap_shapes(teacher, SIDE)
        objective = build_objective(
            recipe, student_shapes=ours, teacher_shapes=theirs, labels=LABELS
        )
    term = objective.terms[name].loss
    module = term if isinstance(term, nn.Module) else nn.Module()
    learns = [p for p in module.to("meta").parameters() if p.requires_grad]
    projector = [p for n, p in student.net.named_parameters() if n.startswith("projector")]
    return Count(
        sum(p.numel() for p in [*learns, *projector]),
        {b: _peak(term, _answers(b, ours, theirs), module) for b in (128, 512)},
    )


def _with_taps(recipe: Recipe, whose: Any) -> tuple[nn.Module, list[str]]:
    net = build_network(recipe, whose, CLASSES)
    return net, required_taps(recipe, whose, net)


def _answers(batch: int, ours: dict[str, Any], theirs: dict[str, Any]) -> LossInputs:
    """Answers of the right shapes, of nothing."""

    def maps(of: dict[str, Any], *, learns: bool) -> dict[str, Tensor]:
        return {
            name: torch.empty(batch, *shape, device="meta", requires_grad=learns)
            for name, shape in of.items()
        }

    logits, teacher, own = (torch.empty(batch, CLASSES, device="meta") for _ in range(3))
    return LossInputs(
        logits.requires_grad_(),
        teacher,
        teacher,
        maps(ours, learns=True),
        maps(theirs, learns=False),
        torch.empty(batch, dtype=torch.int64, device="meta"),
        UnmixedTeacherLogits(own, own, torch.empty(batch, 1, device="meta")),
    )


def _peak(term: Any, answers: LossInputs, module: nn.Module) -> int:
    """Bytes that forward and backward hold at most, the answers themselves not counted."""
    held = Held()
    given = [t for t in tree_leaves(vars(answers)) if isinstance(t, Tensor)]
    held.ignore([*given, *module.parameters(), *module.buffers()])
    with held:
        term(answers).backward()
    return held.peak


def timed(name: str) -> tuple[float, float]:
    """Milliseconds of the term's forward and backward, and of the whole step; medians."""
    recipe = recipes.load(
        f"{RECIPES.get(name, name)}+two_cores",
        ["data.source=synthetic", "data.train_images=2000", *SMALL.get(name, [])],
    ).recipe
    run = prepared(recipe)
    view, rows = run.loader.batches(0)[0]
    batch = run.loader.batch(view, rows)
    term, spans = run.loss.terms[name], ([], [])  # type: ignore[var-annotated]
    lesson = run.teacher(batch, term.needs)
    said = run.model_ddp(batch.images)
    for _ in range(WARMUP + ROUNDS):
        leaves = {tap: t.detach().requires_grad_() for tap, t in said.taps.items()}
        answers = LossInputs(
            said.logits.detach().requires_grad_(), batch.targets, lesson.logits, leaves,
            lesson.taps, rows, lesson.unmixed,
        )  # fmt: skip
        began_at = time.perf_counter()
        term.loss(answers).backward()
        between_at = time.perf_counter()
        loop.step(run, 0)
        spans[0].append(between_at - began_at)
        spans[1].append(time.perf_counter() - between_at)
    own, whole = (1000 * median(each[WARMUP:]) for each in spans)
    return own, whole


def row(name: str) -> list[str]:
    """The counted columns of a term; the timed ones are empty."""
    file = f"distill/losses/{name}.py"
    cost = counted(name)
    test = f"tests/losses/test_{name}.py"
    if not (ROOT / test).exists():
        raise UserError(f"{test} is not there: what pins loss.{name}?")
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
    """The first arXiv number of a file's docstring."""
    head = ast.get_docstring(ast.parse(file.read_text())) or ""
    found = re.search(r"arXiv\s+(\d{4}\.\d{4,5})|(10\.\d{4,9}/[\w./-]+\w)", head)
    if found is None:
        raise UserError(f"{file} names no paper")
    return f"arXiv {found[1]}" if found[1] else f"DOI {found[2]}"


def stale(page: str) -> list[str]:
    """The terms whose counted columns are not what the page says."""
    known = {cells[0]: cells for cells in _cells(page)}
    return [
        name
        for name in Losses.model_fields
        if (fresh := row(name)) and _fixed(known.get(fresh[0], [])) != _fixed(fresh)
    ]


def _fixed(cells: list[str]) -> list[str]:
    return cells[:COUNTED] + cells[-1:]


def _cells(page: str) -> list[list[str]]:
    between = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in between.splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table() -> str:
    """The whole table in Markdown, timed on this machine."""
    lines = [COLUMNS, ("---", "---", *("---:",) * 5, "---")]
    for name in Losses.model_fields:
        cells = row(name)
        own, whole = timed(name)
        cells[COUNTED:-1] = [f"{own:.1f}", f"{own / whole:.1%}"]
        lines.append(tuple(cells))  # type: ignore[arg-type]
        print(*cells, sep="  ", file=sys.stderr)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m docs.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    given = parser.parse_args(arguments)
    page = PAGE.read_text()
    if given.check:
        if changed := stale(page):
            sys.exit(
                f"docs/methods.md is stale: {', '.join(changed)}. Type: python -m docs.methods"
            )
        return
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(PAGE, f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
