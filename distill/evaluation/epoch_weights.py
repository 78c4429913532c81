"""Save the weights of every n-th epoch, and evaluate them after training.

Nothing is chosen by them: a test curve is drawn after the run, when its weights are long selected.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet, Progress
from distill.errors import UserError
from distill.evaluation.predict import check_tested, measure, test_split
from distill.events import MEASURES, Split, measure_name
from distill.files import json_files
from distill.format import describe_class_difference
from distill.models import checkpoint
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RunFolder, write_json
from distill.training import build
from distill.training.state import TrainState

SPLITS: tuple[Split, ...] = ("train", "test")
TESTED_MEASURES = {measure_name(measure, split) for measure in MEASURES for split in SPLITS}
TRAIN_IMAGES = 5000  # half a point of doubt, for half of what the test split costs


def weights_path(folder: RunFolder, epoch: int) -> Path:
    """Where the weights of an epoch lie, from 1."""
    return folder.epochs / f"epoch-{epoch}.safetensors"


def saved_epochs(folder: RunFolder) -> list[int]:
    """The epochs whose weights were kept, in order."""
    names = (path.stem for path in folder.epochs.glob("epoch-*.safetensors"))
    return sorted(int(name.removeprefix("epoch-")) for name in names)


def save(run: TrainState) -> None:
    """Keep the weights to use of the epoch that ended, where it is one to keep: the average's where
    the run has one. On disk before the checkpoint that has the epoch behind it, so that a resumed
    run leaves no gap. Raises OSError where the disk does not take it.
    """
    every = run.settings.keep_epochs
    is_wanted = every is not None and (run.epoch % every == 0 or run.epoch == run.epochs)
    if is_wanted and run.accelerator.is_main_process:
        checkpoint.save_weights(
            weights_path(run.folder, run.epoch), checkpoint.copy_weights(run.final_weights)
        )


def delete_later(run: TrainState) -> None:
    """Drop what lies after the epochs done: a run that went back comes to other weights."""
    if run.accelerator.is_main_process:
        for epoch in saved_epochs(run.folder):
            if epoch > run.epoch:
                weights_path(run.folder, epoch).unlink()


def measure_epochs(
    folder: RunFolder, *, progress: Progress | None = None
) -> dict[int, dict[str, float]]:
    """`top1/test`, `nll/test` and `ece/test` of each kept epoch of a finished run, in float32, and
    the same `/train` on 5,000 images of the training part, neither augmented nor mixed.

    Remembered in the folder, if it can be written, by the fingerprint of the weights: what was
    measured before is not measured again. Raises UserError where the run is not finished, kept
    nothing, or the images have other classes than it was trained for.
    """
    result, found = folder.result(), saved_epochs(folder)
    if not found:
        raise UserError(
            f"run {folder.path} kept the weights of no epoch, so it has no test curve.\n"
            "Train it with --set train.keep_epochs=1, and draw the curve of that run."
        )
    weights = {
        epoch: checkpoint.weights_fingerprint(weights_path(folder, epoch)) for epoch in found
    }
    known = _cached_measures(folder)
    if any(known.get(sha256) is None for sha256 in weights.values()):
        for sha256, measures in _measure_new(
            folder, result["class_names"], weights, known, progress
        ):
            known[sha256] = measures
            with suppress(OSError):  # a full or read-only disk: measured again the next time
                write_json(folder.test_curve, known)
    return {epoch: known[sha256] for epoch, sha256 in weights.items()}


def _cached_measures(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Measures by the fingerprint of their weights; those of another version are not known."""
    file = folder.test_curve
    known = json_files.test_curve(file) if file.exists() else {}
    return {
        sha256: measures for sha256, measures in known.items() if measures.keys() >= TESTED_MEASURES
    }


def _measure_new(
    folder: RunFolder,
    class_names: list[str],
    weights: dict[int, str],
    known: dict[str, Any],
    progress: Progress | None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """(fingerprint, measures) of the weights that are not known."""
    recipe, accel = recipes.read(folder.recipe), build.evaluation_accelerator()
    splits = _splits(folder, recipe, class_names, progress)
    net = build.to_device(build.network(recipe, folder.role, len(class_names)), accel.device)
    for done, (epoch, sha256) in enumerate(weights.items()):
        if progress is not None:
            progress("measuring the kept epochs", done, len(weights))
        if sha256 not in known:
            checkpoint.load_weights(weights_path(folder, epoch), net, sha256)
            yield (
                sha256,
                {
                    measure_name(name, split): value
                    for split, images in splits.items()
                    for name, value in measure(net, images, accel).items()
                },
            )


def _splits(
    folder: RunFolder, recipe: Recipe, class_names: list[str], progress: Progress | None
) -> dict[Split, ImageSet]:
    """The images of each curve. The training part lies in the order of digests, so that its first
    images are a sample of it.
    """
    test = test_split(recipe.data.source, progress=progress)
    if list(test.class_names) != class_names:
        ours, theirs = describe_class_difference(class_names, test.class_names)
        raise UserError(
            f"run {folder.path} knows the classes {ours}; {recipe.data.source} has {theirs} now.\n"
            "Bring the former images back."
        )
    check_tested(folder, test, recipe.data.source)
    images = image_set.load(recipe.data.source, "train", progress=progress)
    chosen, _ = build.split_indices(recipe, images)
    return {"train": image_set.subset(images, chosen[:TRAIN_IMAGES]), "test": test}
