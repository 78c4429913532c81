"""Verify cached teacher logits against the teacher."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from distill.data.augment.pipeline import AugmentSchedule
from distill.data.loader import View
from distill.data.sources import image_set
from distill.errors import UserError
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder
from distill.teacher import cache_files, selection
from distill.teacher.cache_files import CacheEntry
from distill.teacher.view_cache import CachedTeacher, logits_match
from distill.training import build, fingerprints

VIEWS, SAMPLES = 4, 256  # asked again: so many samples of so many views, evenly spread


@dataclass
class CacheCheck:
    """What was found out about a stock; sound where nothing is `damaged` or `differing`."""

    views: int
    damaged: list[int] = field(default_factory=list)  # views whose file cannot be read
    differing: list[int] = field(default_factory=list)  # views of which the teacher says other
    n_compared: int = 0  # answers that were asked again …
    n_matching: int = 0  # … of so many views
    why_not_compared: str = ""  # why the teacher could not be asked

    @property
    def is_sound(self) -> bool:
        return not (self.damaged or self.differing)

    def __str__(self) -> str:
        said = [counted(self.views, "view")]
        if self.damaged:
            said.append(f"damaged: {', '.join(map(str, self.damaged))}")
        if self.differing:
            said.append(f"the teacher says other of: {', '.join(map(str, self.differing))}")
        if self.n_compared:
            said.append(
                f"{self.n_compared} answers of {counted(self.n_matching, 'view')} asked again"
            )
        if self.why_not_compared:
            said.append(f"it could not be asked: {self.why_not_compared}")
        if self.is_sound:
            said.append("sound" if self.n_compared else "whole, and not held against the teacher")
        return "; ".join(said)


def verify(stock: CacheEntry) -> CacheCheck:
    """Read every file; ask the teacher again where it, the images and the recipe still are."""
    views = stock.views
    verdict = CacheCheck(len(views), [view for view in views if stock.read(view) is None])
    try:
        stored = _rebuild_teacher(stock)
        readable = [view for view in views if view not in verdict.damaged]
        for number in readable[:: max(1, len(readable) // VIEWS)][:VIEWS]:
            _compare_view(stored.loader.view(number), stock, stored, verdict)
    except UserError as fault:
        verdict.why_not_compared = str(fault).splitlines()[0]
    return verdict


def _rebuild_teacher(stock: CacheEntry) -> CachedTeacher:
    """The source of the run that asked first, view n in epoch n, drawn as the stock's are.

    Raises UserError where a part of it is gone or has changed.
    """
    if not stock.recipe:
        raise UserError(f"{stock.path} does not say what it holds")
    recipe: Recipe = recipes.loads(stock.recipe, str(stock.path / cache_files.ABOUT))
    images = image_set.load(recipe.data.source, "train")
    split = build.split_images(recipe, images)
    teacher = selection.load_teacher(recipe, images, split)
    try:
        accel = build.accelerator(recipe)
    except ValueError as fault:  # accelerate has one precision a process
        raise UserError("another stock of another precision came first; verify it alone") from fault
    known_by = fingerprints.identity(recipe, images, selection.teachers_fingerprint(recipe))
    nowhere = RunFolder(Path("unused"))
    role: Role = "student" if recipe.student else "teacher"
    run = build.state(recipe, role, split, teacher, nowhere, accel, known_by)
    stored = run.teacher.source
    if not isinstance(stored, CachedTeacher):
        raise UserError("its recipe stores no answers")
    sides = (None, *(side for _, side in stored.loader.schedule.sides))
    for operated, mixed, side in product((None, 0), (None, 0), sides):
        schedule = AugmentSchedule(None, operated, mixed).at(side)
        pipeline = schedule.pipeline(stored.loader.pipeline, 0)
        depends = stored.depends_on(0, pipeline, mixed=stored.mixed_asked)
        if cache_files.cache_key(depends).endswith(stock.key):
            stored.loader.set_schedule(schedule)
            return stored
    raise UserError(
        "teacher, images or program changed since, and nothing will read it; "
        f"type python cli.py cache drop {stock.key[:12]}"
    )


def _compare_view(
    view: View, stock: CacheEntry, stored: CachedTeacher, verdict: CacheCheck
) -> None:
    kept = stock.read(view.number)
    assert kept is not None
    known = torch.from_numpy(kept).float()
    rows = view.order[:: max(1, len(view.order) // SAMPLES)][:SAMPLES]
    rows = rows[~known[rows.cpu()].isnan().any(dim=1).to(rows.device)]
    if not len(rows):
        return
    said = stored.recompute(view, rows).cpu()
    verdict.n_compared += len(rows)
    verdict.n_matching += 1
    if not logits_match(said, known[rows.cpu()]):
        verdict.differing.append(view.number)
