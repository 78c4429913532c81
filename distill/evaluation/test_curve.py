"""Measure the saved weights of a finished run's epochs on test and training images."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import build_network, check_weights_file, to_device
from distill.components.data_pipeline import split_indices
from distill.components.read_test_split import check_tested, test_split
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.errors import UserError
from distill.evaluation.predict_split import evaluate_network
from distill.events import MEASURES, Split, measure_name
from distill.files import run_json_schemas
from distill.format import describe_class_difference
from distill.models import checkpoint
from distill.models.epoch_weights import saved_epochs, weights_path
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import check_runs_match
from distill.runs.run_folder import RunFolder, file_sha256, write_json

SPLITS: tuple[Split, ...] = ("train", "test")
ROUNDING = 1e-3  # of an accuracy, 0..1: some images, if computed on another device
TESTED_MEASURES = {measure_name(measure, split) for measure in MEASURES for split in SPLITS}
TRAIN_IMAGES = 5000  # accurate to half a point, at half the cost of the test split


def measure_epochs(
    folder: RunFolder, *, progress: Progress | None = None
) -> dict[int, dict[str, float]]:
    """Return the measures of each saved epoch of a finished run, by epoch, computed in float32.

    The measures are `top1/test`, `nll/test` and `ece/test`, and `top1/train`, `nll/train` and
    `ece/train` on up to 5,000 training images, neither augmented nor mixed. They are cached in the
    run folder, if it is writable, by the fingerprint of the weights. Raises UserError if the run is
    not finished or has no saved epochs, or if the images or their classes have changed.
    """
    result, epochs = folder.result(), saved_epochs(folder)
    if not epochs:
        raise UserError(
            f"run {folder.path} saved the weights of no epoch, so it has no test curve.\n"
            "Train it again in another --out, without --set train.keep_epochs=0: about 20 "
            "epochs are saved by default."
        )
    weights = {epoch: file_sha256(weights_path(folder, epoch)) for epoch in epochs}
    _check_recorded(folder, result, weights)
    cached = _cached_measures(folder)
    _check_against_result(folder, result, cached)
    if any(cached.get(sha256) is None for sha256 in weights.values()):
        for sha256, measures in _measure_new(
            folder, result["class_names"], weights, cached, progress
        ):
            cached[sha256] = measures
            with suppress(OSError):  # a full or read-only disk: measured again the next time
                write_json(folder.test_curve, cached)
    return {epoch: cached[sha256] for epoch, sha256 in weights.items()}


def _check_recorded(
    folder: RunFolder, result: Mapping[str, Any], weights: Mapping[int, str]
) -> None:
    """Raise UserError if saved weights are not those that the run recorded when it finished.

    `weights`: their sha256 by epoch. A result of an earlier version, which recorded none, is not
    compared.
    """
    recorded = result.get("epoch_weights", {str(epoch): each for epoch, each in weights.items()})
    for epoch, sha256 in weights.items():
        if recorded.get(str(epoch)) != sha256:
            raise UserError(
                f"{weights_path(folder, epoch)} is not the file that its run wrote: its sha256 is "
                f"not in {folder.result_file.name}.\nRestore it, or delete it: the test curve then "
                "lacks this epoch."
            )


def _check_against_result(
    folder: RunFolder, result: Mapping[str, Any], cached: Mapping[str, Mapping[str, float]]
) -> None:
    """Raise UserError if cache and result differ in the accuracy of the final weights."""
    name = measure_name("top1", "test")
    final, measured = cached.get(result["weights"]), result["metrics"].get(name)
    if final is not None and measured is not None and abs(final[name] - measured) > ROUNDING:
        raise UserError(
            f"{folder.test_curve} has {name} = {final[name]:.4f} for the final weights, "
            f"{folder.result_file.name} has {measured:.4f}.\n"
            "Delete the first file: its measures are computed again."
        )


def _cached_measures(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Return the cached measures, keyed by the fingerprint of the weights.

    Incomplete entries, written by another version of the program, are left out.
    """
    file = folder.test_curve
    cached = run_json_schemas.test_curve(file) if file.exists() else {}
    return {
        sha256: measures
        for sha256, measures in cached.items()
        if measures.keys() >= TESTED_MEASURES
    }


def _measure_new(
    folder: RunFolder,
    class_names: list[str],
    weights: dict[int, str],
    cached: dict[str, Any],
    progress: Progress | None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (fingerprint, measures) of the saved weights that are not in `cached`.

    `weights`: fingerprint by epoch. `cached`: measures by fingerprint.
    """
    check_runs_match.check_recipe_of_result(folder)
    recipe, accel = recipes.read(folder.recipe), evaluation_accelerator()
    for epoch in weights:
        check_weights_file(recipe, folder.role, len(class_names), weights_path(folder, epoch))
    splits = _splits(folder, recipe, class_names, progress)
    net = to_device(build_network(recipe, folder.role, len(class_names)), accel.device)
    for done, (epoch, sha256) in enumerate(weights.items()):
        if progress is not None:
            progress("measuring the saved epochs", done, len(weights))
        if sha256 not in cached:
            checkpoint.load_weights(weights_path(folder, epoch), net, sha256)
            yield (
                sha256,
                {
                    measure_name(name, split): value
                    for split, images in splits.items()
                    for name, value in evaluate_network(net, images, accel).items()
                },
            )


def _splits(
    folder: RunFolder, recipe: Recipe, class_names: list[str], progress: Progress | None
) -> dict[Split, ImageSet]:
    """Return the images to measure of each split: all test images and up to 5,000 training images.

    The training part is sorted by digest, so that its first images are a random sample.
    """
    test = test_split(recipe.data.source, size=recipe.data.image_size, progress=progress)
    if list(test.class_names) != class_names:
        of_run, of_source = describe_class_difference(class_names, test.class_names)
        raise UserError(
            f"run {folder.path} has the classes {of_run}; {recipe.data.source} now has "
            f"{of_source}.\nRestore the original images."
        )
    check_tested(folder, test, recipe.data.source)
    images = load_data_set.load(
        recipe.data.source, "train", size=recipe.data.image_size, progress=progress
    )
    indices, _ = split_indices(recipe, images)
    return {"train": load_data_set.subset(images, indices[:TRAIN_IMAGES]), "test": test}
