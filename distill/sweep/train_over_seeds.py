"""Train a recipe and its control with several seeds, and compare them in pairs.

A seed determines both the data order and the initial weights, so a run and its control with the
same seed see the same images in the same order and can be compared as a pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipes import About, ResolvedRecipe
from distill.runs import check_runs_match, run_folder
from distill.runs.read_predictions import verified_top1
from distill.runs.run_folder import Role, RunFolder
from distill.statistics import mean_and_interval, paired_difference


@dataclass(frozen=True)
class SeedRun:
    """A planned run with one seed. `is_control`: whether it trains without the teacher."""

    seed: int
    is_control: bool
    resolved: ResolvedRecipe
    folder: RunFolder

    @property
    def role(self) -> Role:
        """The role of the trained network: 'teacher' for a recipe without a student."""
        return "student" if self.resolved.recipe.student else "teacher"


def plan(
    resolved: ResolvedRecipe, seeds: Sequence[int], parent: Path, *, controls: bool
) -> list[SeedRun]:
    """Plan a run for each seed, in a folder in `parent`.

    If `controls` is True and the recipe has a teacher, each run is followed by its control, which
    trains the same student without a teacher. Raises UserError for fewer than two seeds, which have
    no spread.
    """
    if len(set(seeds)) < 2:
        raise UserError(
            "one seed has no standard deviation; type at least --n 2, or --n 5 if time allows."
        )
    runs = []
    for seed in seeds:
        recipe = recipe_variants.with_seed(resolved.recipe, seed)
        seeded = replace(resolved, recipe=recipe)
        runs.append(SeedRun(seed, False, seeded, RunFolder(parent / f"seed-{seed}")))
        if controls and recipes.has_teacher(recipe):
            control = RunFolder(parent / f"control-{seed}")
            runs.append(SeedRun(seed, True, control_of(seeded), control))
    return runs


def control_of(resolved: ResolvedRecipe) -> ResolvedRecipe:
    """Return the recipe that trains the same student without a teacher."""
    alone = recipe_variants.control_recipe(resolved.recipe)
    alone = alone.model_copy(update={"teacher": None, "about": About()})
    return replace(resolved, recipe=alone, name=f"{resolved.name} (control)")


def check(planned: Sequence[SeedRun]) -> None:
    """Raise UserError if a planned run can be neither begun nor resumed in its folder.

    Called before any training starts.
    """
    for each in planned:
        run_folder.check_subfolder(each.folder.path)
        if each.folder.is_run:
            check_runs_match.check_same(each.folder, each.resolved.recipe)
        else:
            run_folder.check_out(each.folder, resume=True)


def with_same_teacher(seed_run: SeedRun, first: SeedRun) -> ResolvedRecipe:
    """Return the recipe to train, with the teachers that the run `first` has chosen.

    Otherwise, if the recipe names no teacher, each run would choose the best one at its start,
    which could be a teacher that has finished since. A control has no teacher.
    """
    recipe = seed_run.resolved.recipe
    if seed_run.is_control or not first.folder.is_run or (recipe.teacher and recipe.teacher.runs):
        return seed_run.resolved
    chosen = recipes.read(first.folder.recipe).teacher
    if chosen is None:
        return seed_run.resolved
    return replace(seed_run.resolved, recipe=recipe_variants.with_teacher(recipe, chosen.runs))


def summary(planned: Sequence[SeedRun]) -> dict[str, Any]:
    """Summarise the test accuracies of finished runs, 0..1.

    Keys of the result:
    - `network`, `parameters`;
    - `top1`: `n`, `mean`, `std` and `interval` of the runs (see statistics.MeanAndInterval);
    - with controls `control`, the same for the controls, `difference`, the same for the paired
      differences run - control, and `p`, the p-value of the null hypothesis of no difference;
    - `notes`, if some results have no fingerprint of the test split;
    - `runs`: `run`, `seed`, `top1` and for a control `is_control`, one entry for each run.

    Raises UserError if a run is not finished, or if the runs differ in images, test split, class
    names or teacher, or if one is a copy of another.
    """
    _check_alike(planned)
    for is_control in (False, True):
        _check_no_copies([each for each in planned if each.is_control is is_control])
    own, controls = (
        {each.seed: verified_top1(each.folder) for each in planned if each.is_control is is_control}
        for is_control in (False, True)
    )
    result: dict[str, Any] = {
        "network": planned[0].folder.result()["network"],
        "parameters": planned[0].folder.result()["parameters"],
        "top1": asdict(mean_and_interval(list(own.values()))),
    }
    if controls:
        result |= _compare_with_controls(own, controls)
    notes = check_runs_match.missing_test_split_note([each.folder.result() for each in planned])
    result |= {"notes": notes} if notes else {}
    result["runs"] = [_row(each) for each in planned]
    return result


def _row(run: SeedRun) -> dict[str, Any]:
    """Return the entry of a finished run in `runs` of a summary."""
    row = {
        "run": str(run.folder.path),
        "seed": run.seed,
        "top1": verified_top1(run.folder),
    }
    return row | ({"is_control": True} if run.is_control else {})


def _compare_with_controls(own: dict[int, float], controls: dict[int, float]) -> dict[str, Any]:
    """Return `control`, `difference` and `p` of a summary, from the accuracies by seed."""
    difference, p = paired_difference(list(own.values()), [controls[seed] for seed in own])
    return {
        "control": asdict(mean_and_interval(list(controls.values()))),
        "difference": asdict(difference),
        "p": p,
    }


def _check_alike(planned: Sequence[SeedRun]) -> None:
    """Raise UserError unless all runs have the same images, test split, class names and teacher.

    Controls have no teacher.
    """
    results = [each.folder.result() for each in planned]
    seen = {what: {r[what]["fingerprint"] for r in results} - {""} for what in ("data", "teacher")}
    differing = [what for what, fingerprints in seen.items() if len(fingerprints) > 1]
    differing += check_runs_match.test_split_differences(results)
    if differing:
        raise UserError(
            f"the runs in {planned[0].folder.path.parent} differ in their "
            f"{' and '.join(differing)}: they cannot be summarised together.\n"
            "Start again in another --out."
        )


def _check_no_copies(planned: Sequence[SeedRun]) -> None:
    """Raise UserError if two runs have the same weights: one is a copy, not another seed."""
    names: dict[str, str] = {}
    for each in planned:
        weights = each.folder.result().get("weights")  # None of an earlier version
        first = names.setdefault(weights, each.folder.path.name) if weights else None
        if first not in (None, each.folder.path.name):
            raise UserError(
                f"{first} and {each.folder.path.name} in {each.folder.path.parent} have the same "
                "weights: one is a copy of the other, not a run with another seed.\n"
                f"Move {each.folder.path} elsewhere and type the same command again."
            )
