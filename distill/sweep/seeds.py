"""Train a recipe and its control with several seeds, and compare them in pairs.

Data and weights are drawn from the same seed, so that a run and its control see the same images in
the same order: they are compared pair by pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import measure_name
from distill.recipe import recipes
from distill.recipe.recipes import About, ResolvedRecipe
from distill.runs import run_folder
from distill.runs.run_folder import Role, RunFolder
from distill.statistics import mean_and_interval, paired_difference


@dataclass(frozen=True)
class SeedRun:
    """One run of the study. `is_control`: without the teacher."""

    seed: int
    is_control: bool
    resolved: ResolvedRecipe
    folder: RunFolder

    @property
    def role(self) -> Role:
        """A recipe without a student is a teacher's."""
        return "student" if self.resolved.recipe.student else "teacher"


def plan(
    resolved: ResolvedRecipe, seeds: Sequence[int], place: Path, *, controls: bool
) -> list[SeedRun]:
    """A run a seed in `place`, each followed by its control where the recipe has a teacher.

    Raises UserError where fewer than two seeds are asked for: one says nothing of the spread.
    """
    if len(set(seeds)) < 2:
        raise UserError(
            "one seed says nothing of the spread; type --n 2 at least, --n 5 where time allows."
        )
    runs = []
    for seed in seeds:
        recipe = recipes.with_seed(resolved.recipe, seed)
        seeded = replace(resolved, recipe=recipe)
        runs.append(SeedRun(seed, False, seeded, RunFolder(place / f"seed-{seed}")))
        if controls and recipes.has_teacher(recipe):
            alone = recipes.control_recipe(recipe).model_copy(
                update={"teacher": None, "about": About()}
            )
            named = replace(resolved, recipe=alone, name=f"{resolved.name} (control)")
            runs.append(SeedRun(seed, True, named, RunFolder(place / f"control-{seed}")))
    return runs


def check(planned: Sequence[SeedRun]) -> None:
    """Raises UserError before any of them trains where a folder is not theirs to go on in."""
    for each in planned:
        if each.folder.is_run:
            run_folder.check_same(each.folder, each.resolved.recipe)
        else:
            run_folder.check_out(each.folder, resume=True)


def with_same_teacher(each: SeedRun, first: SeedRun) -> ResolvedRecipe:
    """The recipe to train, by the teachers that the first run of the study has: one that is
    finished meanwhile is newer and would be another.
    """
    recipe = each.resolved.recipe
    if each.is_control or not first.folder.is_run or (recipe.teacher and recipe.teacher.runs):
        return each.resolved
    chosen = recipes.read(first.folder.recipe).teacher
    if chosen is None:
        return each.resolved
    return replace(each.resolved, recipe=recipes.with_teacher(recipe, chosen.runs))


def summary(planned: Sequence[SeedRun]) -> dict[str, Any]:
    """What finished runs say together: test accuracies, 0..1.

    Keys: `top1` (`n`, `mean`, `std`, `interval`: see statistics.Spread), `runs` (a line each), and
    where there are controls `control` (like `top1`), `difference` (the same of run - control, seed
    by seed) and `p` of "no difference"; `notes` if some do not name their test split. Raises
    UserError where a run is not finished, or where they are not of the same images, test split,
    class names and teacher.
    """
    _check_alike(planned)
    ours, controls = (
        {each.seed: _top1(each.folder) for each in planned if each.is_control is is_control}
        for is_control in (False, True)
    )
    said: dict[str, Any] = {
        "network": planned[0].folder.result()["network"],
        "parameters": planned[0].folder.result()["parameters"],
        "top1": asdict(mean_and_interval(list(ours.values()))),
    }
    if controls:
        difference, p = paired_difference(list(ours.values()), [controls[seed] for seed in ours])
        said |= {
            "control": asdict(mean_and_interval(list(controls.values()))),
            "difference": asdict(difference),
            "p": p,
        }
    notes = run_folder.test_split_unnamed([each.folder.result() for each in planned])
    said |= {"notes": notes} if notes else {}
    said["runs"] = [
        {"run": str(each.folder.path), "seed": each.seed, "top1": _top1(each.folder)}
        | ({"is_control": True} if each.is_control else {})
        for each in planned
    ]
    return said


def _check_alike(planned: Sequence[SeedRun]) -> None:
    """One data set and test split for all, one teacher for those that have one."""
    results = [each.folder.result() for each in planned]
    known = {what: {r[what]["fingerprint"] for r in results} - {""} for what in ("data", "teacher")}
    apart = [what for what, fingerprints in known.items() if len(fingerprints) > 1]
    apart += run_folder.test_split_differences(results)
    if apart:
        raise UserError(
            f"the runs in {planned[0].folder.path.parent} differ in their {' and '.join(apart)}: "
            "they say nothing together.\nBegin anew in another --out."
        )


def _top1(run: RunFolder) -> float:
    return float(run.result()["metrics"][measure_name("top1", "test")])
