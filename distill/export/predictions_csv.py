"""Predict unlabelled images and write Kaggle's CSV.

A label is the index of a class in the run's class names, or on request the class name. Instead of
labels, the file may contain the probability of each class:

ID,Labels          ID,airplane,automobile,…
0,3                0,0.0012,0.0003,…
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill import metrics
from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import load_trained, to_device
from distill.components.check_processes import check_same_inputs
from distill.data.image_set import ImageSet, Progress
from distill.data.sources import images_to_predict
from distill.data.sources.images_to_predict import Unlabelled
from distill.data.task_progress import image_counter
from distill.errors import Failure, UserError
from distill.evaluation.predict_split import BATCH, FlipTTA, check_finite, logits_and_labels
from distill.files.escape_text import csv_cell
from distill.recipe import recipes
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder

AT_ONCE = 10_000  # images that are resized at once; a multiple of the images of a forward pass
MOST_PROBABILITIES = 100_000_000
HEADER = ("ID", "Labels")


@dataclass(frozen=True, eq=False)  # == of arrays is an array, not a bool
class LabelledImages:
    """The network's predictions for each image, in the order of the input."""

    ids: tuple[str, ...]  # of the images, for the column ID
    probabilities: NDArray[np.float64]  # [N, C], each row sums to 1
    class_names: tuple[str, ...]  # of the run; a label is an index into them
    notes: tuple[str, ...]  # for the user, on how the images were read

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most probable class of each image, [N]."""
        labels: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return labels

    def counts(self) -> dict[str, int]:
        """Return the number of images predicted as each class, zeros included."""
        n = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, n, strict=True))


def check_out(out: Path, source: Path) -> None:
    """Raise UserError if predictions of `source` cannot be written to `out`. Writes nothing."""
    advice = "Give --out the name of a file, such as predictions.csv."
    if out.is_dir():
        raise UserError(f"--out {out} is a folder.\n{advice}")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the input itself, which would be overwritten.\n{advice}")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out {out} does not end in .csv.\n{advice}")
    run_folder.check_writable(out.parent, f"the folder of {out.name}")


def predict(
    folder: RunFolder, source: Path, *, mirror: bool = False, progress: Progress | None = None
) -> LabelledImages:
    """Return the predictions of a finished run, in float32, for the images at `source`.

    The images are resized to the size of the run's.

    `mirror`: average the logits over each image and its mirror image, as `evaluate --mirror` does.
    Called by all processes; each returns all predictions. Raises UserError if the run is not
    finished, an image cannot be used, two ids would be written as the same text, or the processes
    have other images or runs.
    """
    accel = evaluation_accelerator()
    size = recipes.read(folder.recipe).data.image_size
    inputs = images_to_predict.load(source, size, progress=progress)
    check_ids(inputs.ids, source)
    class_names = tuple(folder.result()["class_names"])
    _check_size(len(inputs.ids), len(class_names), source)
    check_same_inputs(
        accel,
        lambda: {
            "images": inputs.fingerprint,
            "run": run_folder.file_sha256(folder.result_file),
        },
    )
    net = to_device(load_trained(folder), accel.device)
    net = FlipTTA(net) if mirror else net
    n_at_once = BATCH * accel.num_processes
    counter = image_counter(progress, "predicting", len(inputs.ids), n_at_once)
    parts = []
    for images in _in_parts(inputs, class_names):
        logits, _ = logits_and_labels(net, images, accel, counter)
        check_finite(logits, folder)
        parts.append(metrics.probabilities(logits.cpu().numpy()))
    return LabelledImages(inputs.ids, np.concatenate(parts), class_names, inputs.notes)


def _check_size(n_images: int, n_classes: int, source: Path) -> None:
    """Raise UserError if the probabilities of all images at `source` are too many for memory."""
    if n_images * n_classes > MOST_PROBABILITIES:
        raise UserError(
            f"{source}: {n_images:,} images of {n_classes:,} classes have more than "
            f"{MOST_PROBABILITIES:,} probabilities.\nSplit it."
        )


def _in_parts(inputs: Unlabelled, class_names: tuple[str, ...]) -> Iterator[ImageSet]:
    """Yield the images in their order, at most AT_ONCE at a time; all labels are 0."""
    for start in range(0, len(inputs.ids), AT_ONCE):
        pixels = inputs.images(start, start + AT_ONCE)
        yield ImageSet(pixels, np.zeros(len(pixels), np.int64), class_names)


def check_ids(ids: Sequence[str], source: Path) -> None:
    """Raise UserError if two different ids of `source` are the same text in a CSV file.

    `csv_cell` escapes what a spreadsheet would run or not show: `=1` becomes `'=1`, which another
    image may be called.
    """
    written: dict[str, str] = {}
    for name in ids:
        other = written.setdefault(csv_cell(name), name)
        if other != name:
            raise UserError(
                f"{source}: the ids {other!a} and {name!a} would both be {csv_cell(name)!a} in a "
                "CSV file, in which it may not begin a formula.\nRename one of the images."
            )


def numeric_names_note(class_names: Sequence[str]) -> str | None:
    """Return a note if class names are numbers but differ from their labels; otherwise None.

    They differ because class names are sorted as text ('10' < '2').
    """
    are_numbers = all(name.isdecimal() for name in class_names)
    for position, name in enumerate(class_names if are_numbers else ()):
        if name != str(position):
            return (
                "Labels are positions in the run's class names, which are numbers sorted as "
                f"text: label {position} is class {name!r}. Type --labels names for the names."
            )
    return None


def write(
    predictions: LabelledImages, out: Path, *, probabilities: bool = False, names: bool = False
) -> None:
    """Write the CSV completely or not at all, replacing an earlier one.

    `probabilities`: write a column per class instead of the column `Labels`. `names`: write class
    names in `Labels` instead of class indices. Raises Failure if the file cannot be written.
    """
    text = io.StringIO()
    ids = [csv_cell(name) for name in predictions.ids]
    table = csv.writer(text, lineterminator="\n")
    if probabilities:
        table.writerow([HEADER[0], *map(csv_cell, predictions.class_names)])
        rows = zip(ids, predictions.probabilities.tolist(), strict=True)
        table.writerows([name, *(f"{share:.7g}" for share in shares)] for name, shares in rows)
    else:
        table.writerow(HEADER)
        labels = predictions.labels.tolist()
        class_cells = [csv_cell(name) for name in predictions.class_names]
        cells = [class_cells[label] for label in labels] if names else labels
        table.writerows(zip(ids, cells, strict=True))
    try:
        run_folder.write_text(out, text.getvalue())
    except OSError as error:
        raise Failure(
            f"{out} could not be written ({error.strerror}); nothing was written."
        ) from error
