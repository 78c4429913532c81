"""Write the evidence for a claim from finished runs and their controls.

    python -m benchmarks.claim NAME --claim "…" --runs R… --control C…

A control is a run of the same recipe without a teacher. The n-th run is paired with the n-th
control; both must have the same seeds and data. Writes `results/NAME.json`: the test accuracies of
the runs and of the controls, and the difference of each pair, each with n, mean and sample standard
deviation. No run is left out.
"""

import argparse
import json
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import measure_name
from distill.format import mean_and_std
from distill.recipe import compare_recipes, recipe_variants, recipes
from distill.runs.run_folder import RunFolder, open_finished, write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


def claim(text: str, runs: Sequence[RunFolder], controls: Sequence[RunFolder]) -> dict[str, Any]:
    """Return the content of `results/NAME.json` for the claim `text`.

    Raises UserError if the runs and controls do not form pairs.
    """
    check_pairs(runs, controls)
    differences = [top1(a) - top1(b) for a, b in zip(runs, controls, strict=True)]
    teachers = {path for run in runs for path in run.result()["teacher"]["runs"]}
    return {
        "claim": text,
        "measure": measure_name("top1", "test"),
        "runs": summary([top1(run) for run in runs]),
        "control": summary([top1(run) for run in controls]),
        "difference": summary(differences),
        "teacher": [figures(RunFolder(Path(path))) for path in sorted(teachers)],
        "each": [figures(run) for run in [*runs, *controls]],
        "environment": environment(runs[0]),
        "recipe": resolved(runs[0]),
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return `n`, `mean`, `std` (sample standard deviation; None for one value) and `values`."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        "n": len(values),
        "mean": statistics.mean(values),
        "std": spread,
        "values": list(values),
    }


def top1(run: RunFolder) -> float:
    """Return a run's top-1 accuracy, 0..1, on the test split."""
    accuracy: float = run.result()["metrics"][measure_name("top1", "test")]
    return accuracy


def figures(run: RunFolder) -> dict[str, Any]:
    """Return the facts and measures of one run that are published with a claim."""
    result = run.result()
    keys = ("network", "parameters", "epoch", "epochs", "metrics", "elapsed_s", "device", "weights")
    return {
        "run": run.path.name,
        "seeds": seeds(run),
        "source": environment(run)["source"],
        "data": result["data"] | {"source": Path(result["data"]["source"]).name},
    } | {key: result[key] for key in keys}


def resolved(run: RunFolder) -> dict[str, Any]:
    """Return the recipe of a run, with folder names in place of paths."""
    recipe = recipes.read(run.recipe)
    recipe = recipe_variants.with_source(recipe, Path(recipe.data.source).name)
    if recipe.teacher is not None:
        recipe = recipe_variants.with_teacher(
            recipe, [Path(path).name for path in recipe.teacher.runs]
        )
    values: dict[str, Any] = tomllib.loads(recipes.dumps(recipe))
    del values["about"]
    return values


def environment(run: RunFolder) -> dict[str, Any]:
    """Return hardware, versions and source hash of a run, without its command and paths."""
    content: dict[str, Any] = json.loads(run.environment.read_text())
    return {key: value for key, value in content.items() if key != "command"}


def check_pairs(runs: Sequence[RunFolder], controls: Sequence[RunFolder]) -> None:
    """Raise UserError, with all errors, unless the runs and controls form valid pairs.

    Each control must have the recipe of its run without the teacher, including the seeds. All must
    have the same data, all runs the same teacher, and no run may occur twice.
    """
    if len(runs) != len(controls):
        raise UserError(
            f"{len(runs)} runs and {len(controls)} controls do not form pairs; "
            "give the same number of both."
        )
    all_runs = [*runs, *controls]
    faults = []
    for name, values in {
        "weights": [run.result()["weights"] for run in all_runs],
        "seeds of the runs": [seeds(run) for run in runs],
    }.items():
        if len({str(value) for value in values}) < len(values):
            faults.append(f"the {name} are not all different: a repeated run is no evidence")
    for name, compared in (("data", all_runs), ("teacher", runs)):
        fingerprints = {run.result()[name]["fingerprint"] for run in compared}
        if len(fingerprints) > 1:
            faults.append(
                f"the runs differ in their {name}: fingerprints {', '.join(sorted(fingerprints))}"
            )
    for run, control in zip(runs, controls, strict=True):
        expected = alone(recipe_variants.control_recipe(recipes.read(run.recipe)))
        differences = compare_recipes.differences(expected, alone(recipes.read(control.recipe)))
        faults += [f"{control.path} is not the control of {run.path}: {d}" for d in differences]
    if faults:
        raise UserError("these runs do not support a claim:\n  " + "\n  ".join(faults))


def seeds(run: RunFolder) -> dict[str, int]:
    """Return a run's seeds, `train` of the weights and `data` of split, order and augmentation."""
    recipe = recipes.read(run.recipe)
    return {"train": recipe.train.seed, "data": recipe.data.seed}


def alone(recipe: recipes.Recipe) -> recipes.Recipe:
    """Return the recipe without its table [teacher], which a control does not use."""
    return recipe.model_copy(update={"teacher": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name")
    parser.add_argument("--claim", required=True)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--control", nargs="+", required=True)
    given = parser.parse_args(arguments)
    try:
        content = claim(
            given.claim,
            *([open_finished(Path(p)) for p in ps] for ps in (given.runs, given.control)),
        )
    except UserError as fault:
        parser.error(str(fault))
    write_json(RESULTS / f"{given.name}.json", content)
    for key in ("runs", "control", "difference"):
        n, mean, spread = (content[key][name] for name in ("n", "mean", "std"))
        print(f"{key:<11} {mean_and_std(mean, spread)} % (n = {n})")


if __name__ == "__main__":
    main()
