"""Compare cached teacher logits with newly computed ones."""

from dataclasses import dataclass, field
from itertools import product

import torch

from distill.components.build_accelerator import build_accelerator
from distill.data.augment.augment_schedule import AugmentSchedule
from distill.data.loader import View
from distill.errors import UserError
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.teacher import cache_files
from distill.teacher.cache_files import CacheEntry
from distill.teacher.view_cache import CachedTeacher, logits_match
from distill.training import build

VIEWS, SAMPLES = 4, 256  # recompute the logits of 4 views and 256 samples each, evenly spaced


@dataclass
class CacheCheck:
    """The result of checking a cache entry; sound if no view is `damaged` or `differing`."""

    views: int  # number of views in the entry
    damaged: list[int] = field(default_factory=list)  # views whose file cannot be read
    differing: list[int] = field(default_factory=list)  # views whose recomputed logits differ
    n_compared: int = 0  # number of samples whose logits were recomputed
    n_views_compared: int = 0  # number of views that these samples are from
    why_not_compared: str = ""  # why the teacher could not be run; empty if it was

    @property
    def is_sound(self) -> bool:
        return not (self.damaged or self.differing)

    def __str__(self) -> str:
        parts = [counted(self.views, "view")]
        if self.damaged:
            parts.append(f"damaged: {', '.join(map(str, self.damaged))}")
        if self.differing:
            views = ", ".join(map(str, self.differing))
            parts.append(f"the teacher now computes other logits for: {views}")
        if self.n_compared:
            views = counted(self.n_views_compared, "view")
            parts.append(f"logits of {counted(self.n_compared, 'sample')} in {views} recomputed")
        if self.why_not_compared:
            parts.append(f"the teacher could not be run: {self.why_not_compared}")
        if self.is_sound:
            parts.append("sound" if self.n_compared else "readable, not compared with the teacher")
        return "; ".join(parts)


def verify(entry: CacheEntry) -> CacheCheck:
    """Read every file of a cache entry, and recompute some logits if the teacher is available."""
    views = entry.views
    check = CacheCheck(len(views), [view for view in views if entry.read(view) is None])
    try:
        teacher = _rebuild_teacher(entry)
        readable = [view for view in views if view not in check.damaged]
        for number in readable[:: max(1, len(readable) // VIEWS)][:VIEWS]:
            _compare_view(teacher.loader.view(number), entry, teacher, check)
    except UserError as fault:
        check.why_not_compared = str(fault).splitlines()[0]
    return check


def _rebuild_teacher(entry: CacheEntry) -> CachedTeacher:
    """Rebuild the teacher of the run that created a cache entry, with view n in epoch n.

    Raises UserError if its recipe, data or teacher is missing or has changed.
    """
    if not entry.recipe:
        raise UserError(f"{entry.path} has no readable {cache_files.ABOUT}")
    recipe: Recipe = recipes.loads(entry.recipe, str(entry.path / cache_files.ABOUT))
    try:
        build_accelerator(recipe)
    except ValueError as fault:  # accelerate allows only one precision per process
        raise UserError(
            "one command verifies entries of one precision; verify this one separately"
        ) from fault
    teacher = build.build_teacher_alone(recipe).source
    if not isinstance(teacher, CachedTeacher):
        raise UserError("its recipe caches no teacher logits")
    sides = (None, *(side for _, side in teacher.loader.schedule.sides))
    for operations_end, mixing_end, side in product((None, 0), (None, 0), sides):
        schedule = AugmentSchedule(None, operations_end, mixing_end).at(side)
        pipeline = schedule.pipeline(teacher.loader.pipeline, 0)
        depends = teacher.depends_on(0, pipeline, mixed=teacher.caches_mixed)
        if cache_files.cache_key(depends).endswith(entry.key):
            teacher.loader.set_schedule(schedule)
            return teacher
    raise UserError(
        "teacher, images or program have changed since, and no run will read it; "
        f"type python cli.py cache drop {entry.key[:12]}"
    )


def _compare_view(view: View, entry: CacheEntry, teacher: CachedTeacher, check: CacheCheck) -> None:
    """Recompute some logits of a view and add the comparison to `check`."""
    logits = entry.read(view.number)
    assert logits is not None
    cached = torch.from_numpy(logits).float()
    rows = view.order[:: max(1, len(view.order) // SAMPLES)][:SAMPLES]
    rows = rows[~cached[rows.cpu()].isnan().any(dim=1).to(rows.device)]
    if not len(rows):
        return
    computed = teacher.recompute(view, rows).cpu()
    check.n_compared += len(rows)
    check.n_views_compared += 1
    if not logits_match(computed, cached[rows.cpu()]):
        check.differing.append(view.number)
