"""Publish a finished run as a small folder in results/.

    python -m benchmarks.publish RUN NAME [--data PATH]

Copies recipe, journal, environment, evaluation, result and the weights as float16 to
`results/NAME`; leaves out checkpoints, images and paths of this machine. The copy is measured on
the test split of `--data` (default: the run's own data): `result.json` and `evaluation.npz` contain
the results of the float16 weights, and `published` in `result.json` contains the original ones.
`python cli.py evaluate results/NAME --data …` and `export` then work as with any other run.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.claim import RESULTS
from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import load_trained, to_device
from distill.components.read_test_split import test_split
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.evaluation.predict_split import logits_and_labels, to_host
from distill.metrics import measures
from distill.models import checkpoint
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.runs import read_predictions
from distill.runs.run_folder import RunFolder, file_sha256, open_finished, write_json, write_text

MAX_BYTES = 10_000_000  # of the weights, because the folder is committed to a Git repository
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"(=])/[^\s,;:'\")]+")
# Arrays of evaluation.npz that are not published.
EXTRA = ("mistakes", "mistake_pixels", "val_logits", "val_labels")


def publish(run: RunFolder, to: RunFolder, source: str) -> dict[str, Any]:
    """Write the published folder `to`; return its result.json.

    `source`: the data source on whose test split the float16 weights are measured. Raises UserError
    if the weights take more than MAX_BYTES, or if `source` is not the data of the run.
    """
    result = run.result()
    weights = half(load_file(run.weights(run.role)))
    n_bytes = sum(value.nbytes for value in weights.values())
    if n_bytes > MAX_BYTES:
        raise UserError(
            f"the weights of {run.path} take {n_bytes:,} bytes as float16; a published folder "
            f"may have at most {MAX_BYTES:,}.\nPublish a smaller network, or store them elsewhere."
        )
    recipe = without_paths(recipes.read(run.recipe), result["data"]["fingerprint"])
    write_text(to.recipe, recipes.dumps(recipe))
    lines = (json.loads(line) for line in run.journal.read_text().splitlines())
    write_text(to.journal, "".join(json.dumps(named(line)) + "\n" for line in lines))
    write_json(to.environment, named(json.loads(run.environment.read_text())))
    result |= {
        "recipe_fingerprint": recipe_fingerprint(recipe),
        "weights": checkpoint.save_weights(to.weights(run.role), weights),
        "published": {"metrics": result["metrics"], "weights": result["weights"]},
    }
    result["data"]["source"] = recipe.data.source
    write_json(to.result_file, named(result))
    result["metrics"] = result["metrics"] | measured(run, to, source)
    result["evaluation"] = file_sha256(to.evaluation)
    write_json(to.result_file, named(result))
    return result


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16; leave the others unchanged."""
    return {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}


def without_paths(recipe: Recipe, fingerprint: str) -> Recipe:
    """Return the recipe with names in place of the paths of its data and teachers."""
    is_cifar10 = fingerprint in load_data_set.GENUINE
    recipe = recipe_variants.with_source(
        recipe, "cifar10" if is_cifar10 else Path(recipe.data.source).name
    )
    if recipe.teacher is not None:
        recipe = recipe_variants.with_teacher(
            recipe, [Path(path).name for path in recipe.teacher.runs]
        )
    return recipe


def named(value: Any) -> Any:
    """Replace each absolute path in a JSON value, also inside a text, by its last part.

    A text of several lines, such as the recipe, is left unchanged.
    """
    if isinstance(value, dict):
        return {key: named(each) for key, each in value.items()}
    if isinstance(value, list):
        return [named(each) for each in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith("/"):
        return Path(value).name
    return ABSOLUTE_PATH.sub(lambda found: Path(found[0]).name, value)


def measured(run: RunFolder, to: RunFolder, source: str) -> dict[str, float]:
    """Measure the published weights of `to` on the test split; write its evaluation.npz.

    Returns `top1/test`, `nll/test` and `ece/test`. Raises UserError if the labels of `source`'s
    test split are not those on which `run` was measured.
    """
    accel = evaluation_accelerator()
    net = to_device(load_trained(to), accel.device)
    logits, labels = to_host(logits_and_labels(net, test_split(source), accel))
    predictions = read_predictions.read_run(run)
    assert predictions is not None, f"{run.evaluation} is missing"
    if not np.array_equal(predictions.labels, labels):
        raise UserError(f"{source} is not the test split on which {run.path} was measured.")
    arrays = vars(predictions) | {"logits": logits} | dict.fromkeys(EXTRA)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(to.evaluation, **arrays)
    return {f"{name}/test": value for name, value in measures(logits, labels).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    try:
        run = open_finished(given.run)
        source = given.data or recipes.read(run.recipe).data.source
        result = publish(run, RunFolder(given.results / given.name), source)
    except UserError as fault:
        parser.error(str(fault))
    before, after = result["published"]["metrics"]["top1/test"], result["metrics"]["top1/test"]
    print(f"top-1 on the test split: {before:.2%} in the run, {after:.2%} of the float16 weights")


if __name__ == "__main__":
    main()
