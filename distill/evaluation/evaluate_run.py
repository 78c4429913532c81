"""Evaluate a finished run on a test split: accuracy, calibration, agreement, robustness."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import load_trained, to_device
from distill.components.check_processes import check_same_inputs
from distill.components.data_pipeline import split_images
from distill.components.read_test_split import check_tested, test_split
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.data.task_progress import running
from distill.errors import UserError
from distill.evaluation import accuracy_and_calibration, write_results
from distill.evaluation.check_measured_again import check_measured_again
from distill.evaluation.predict_split import (
    FlipTTA,
    SixViewTTA,
    check_finite,
    predict_with_progress,
    to_host,
)
from distill.evaluation.robustness import robustness
from distill.format import describe_class_difference
from distill.metrics import Array, confusion
from distill.models import cost
from distill.recipe import recipes
from distill.recipe.schema import Data
from distill.runs import run_folder
from distill.runs.read_predictions import Predictions
from distill.runs.run_folder import RunFolder
from distill.teacher.build_teacher import combine_teachers
from students.resnet import ResNet

CALIBRATED = ("temperature", "nll_calibrated", "ece_calibrated")  # need held-out images
TAUGHT = ("teacher_agreement", "teacher_kl")  # need a teacher


@dataclass(frozen=True)
class EvalOptions:
    """The data to evaluate on, and measures to compute besides the standard ones."""

    data: str | None = None  # data source; None for the run's own
    against: Path | None = None  # another finished run to compare with
    mirror: bool = False  # measures of the mean over each image and its mirror image
    latency: bool = False
    robustness: bool = False  # accuracy on corrupted images
    robustness_images: int | None = None  # number of images to corrupt; None for all
    six_views: bool = False  # measures of the mean over six shifted and mirrored views


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with its network, and the network's logits on the test split of a data source."""

    folder: RunFolder
    net: nn.Module
    source: str  # of the images, as typed: cifar10 or a path
    test: ImageSet
    accelerator: Accelerator
    logits: Array  # [N, C]
    labels: Array  # [N]
    saved: dict[str, Array]  # arrays of evaluation.npz; empty if of another network or images


@dataclass(frozen=True)
class Evaluation:
    """The measures of a run, and the predictions that they were computed from.

    `predictions`: by the run's folder; those of the run to compare with too, if there is one.
    """

    measures: dict[str, Any]
    predictions: dict[Path, Predictions]


def evaluate_run(
    folder: RunFolder, options: EvalOptions | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Compute the measures of a finished run, as `evaluate` does, and return them alone."""
    return evaluate(folder, options, progress=progress).measures


def evaluate(
    folder: RunFolder, options: EvalOptions | None = None, *, progress: Progress | None = None
) -> Evaluation:
    """Compute the measures of a finished run on a test split, in float32; called by all processes.

    Measures that cannot be computed are None; `absent` maps their names to the reasons. Raises
    UserError if the data has other classes than the run was trained for, if the run's own test
    split has changed, if the run to compare with has another test split, or if the files of one of
    them have other predictions than its network.
    """
    options = options or EvalOptions()
    run = _load_and_predict(folder, options.data, progress)
    other = None if options.against is None else _load_other(run, options, progress)
    runs = [run] if other is None else [run, other]
    return Evaluation(
        _measures(run, other, options, progress),
        {each.folder.path: Predictions(each.logits, each.labels) for each in runs},
    )


def _measures(
    run: EvaluatedRun, other: EvaluatedRun | None, options: EvalOptions, progress: Progress | None
) -> dict[str, Any]:
    return {
        **_description(run),
        **accuracy_and_calibration.headline_measures(run.logits, run.labels),
        **_calibration_and_agreement(run, progress),
        "per_class": accuracy_and_calibration.per_class(
            run.logits, run.labels, run.test.class_names
        ),
        "confusion": confusion(run.logits, run.labels).tolist(),
        **_optional_measures(run, other, options, progress),
    }


def _calibration_and_agreement(run: EvaluatedRun, progress: Progress | None) -> dict[str, Any]:
    """Return the measures that need held-out images or a teacher.

    If these are not available, the measures are None and `absent` has the reason.
    """
    parts: dict[tuple[str, ...], Callable[[], dict[str, float]]] = {
        CALIBRATED: lambda: accuracy_and_calibration.calibrate(
            _held_out(run, progress), run.logits, run.labels
        ),
        TAUGHT: lambda: accuracy_and_calibration.compare_with_teacher(
            run.logits, _teacher_logits(run, progress)
        ),
    }
    values: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for names, compute in parts.items():
        try:
            values |= compute()
        except UserError as fault:
            values |= dict.fromkeys(names)
            absent[names[0]] = str(fault).splitlines()[0]
    return values | {"absent": absent}


def _optional_measures(
    run: EvaluatedRun, other: EvaluatedRun | None, options: EvalOptions, progress: Progress | None
) -> dict[str, Any]:
    """Return the measures that `options` request besides the standard ones, by name."""
    values: dict[str, Any] = {}
    if other is not None:
        values["against"] = {
            **_description(other),
            **accuracy_and_calibration.headline_measures(other.logits, run.labels),
            **accuracy_and_calibration.compare_networks(run.logits, other.logits, run.labels),
        }
    if options.mirror:
        values["mirror"] = accuracy_and_calibration.headline_measures(
            *_predict(run, run.test, FlipTTA(run.net), progress, "with mirror images")
        )
    if options.six_views:
        predicted = _predict(run, run.test, SixViewTTA(run.net), progress, "with six views")
        values["test_time_augmentation"] = {
            "views": 6,
            **accuracy_and_calibration.headline_measures(*predicted),
        }
    if options.latency:
        if run.accelerator.is_main_process:  # the other processes wait, and do not slow it down
            with running(progress, "measuring the latency"):
                values["latency_ms"] = cost.measure_latency(run.net, run.test.size)
        run.accelerator.wait_for_everyone()
    if options.robustness:
        n_images = options.robustness_images
        values["robustness"] = robustness(run.net, run.test, run.accelerator, n_images, progress)
    return values


def _load_and_predict(
    folder: RunFolder, source: str | None, progress: Progress | None
) -> EvaluatedRun:
    accel = evaluation_accelerator()
    chosen, size = source or _own_data(folder).source, _own_data(folder).image_size
    with accel.main_process_first():  # one process decodes, the others read the cache
        test = test_split(chosen, size=size, progress=progress)
    if source is None:
        _check_classes(folder, chosen, test)
        check_tested(folder, test, chosen)
    return _predict_test(folder, chosen, test, accel, progress)


def _predict_test(
    folder: RunFolder,
    source: str,
    test: ImageSet,
    accel: Accelerator,
    progress: Progress | None,
) -> EvaluatedRun:
    """Predict every test image with the run's network."""
    check_same_inputs(
        accel,
        lambda: {
            "test split": test.fingerprint,
            "class names": test.class_names_fingerprint,
            "run": run_folder.file_sha256(folder.result_file),
        },
    )
    _check_classes(folder, source, test)
    net = to_device(load_trained(folder), accel.device)
    outputs = predict_with_progress(net, test, accel, progress, f"measuring {folder.path.name}")
    check_finite(outputs[0], folder)
    logits, labels = to_host(outputs)
    saved = write_results.read_evaluation(folder)
    if _is_own_test_split(folder, source, test):
        check_measured_again(folder, saved, logits, labels)
    arrays = write_results.matching_arrays(saved, logits)
    return EvaluatedRun(folder, net, source, test, accel, logits, labels, arrays)


def _is_own_test_split(folder: RunFolder, source: str, test: ImageSet) -> bool:
    """Whether a run was tested on these images; an earlier version recorded only their source."""
    recorded = folder.result()["data"].get("test_fingerprint")
    return source == _own_data(folder).source if recorded is None else recorded == test.fingerprint


def _own_data(folder: RunFolder) -> Data:
    return recipes.read(folder.recipe).data


def _description(run: EvaluatedRun) -> dict[str, Any]:
    """Return facts about the run, its network and the data, which are shown above the measures."""
    result = run.folder.result()
    size, net = run.test.size, run.net
    macs = net.design.macs if isinstance(net, ResNet) else cost.count_macs(net, size)
    return {
        "run": str(run.folder.path),
        "role": result["role"],
        "network": result["network"],
        "parameters": cost.count_parameters(run.net),
        "macs": macs,
        "data": run.source,
        "n": len(run.labels),
    }


def _check_classes(folder: RunFolder, source: str, test: ImageSet) -> None:
    class_names = folder.result()["class_names"]
    if list(test.class_names) != class_names:
        of_run, of_source = describe_class_difference(class_names, test.class_names)
        raise UserError(
            f"run {folder.path} has the classes {of_run}; {source} has {of_source}.\n"
            "Give --data with the run's own classes."
        )


def _load_other(run: EvaluatedRun, options: EvalOptions, progress: Progress | None) -> EvaluatedRun:
    """Load the run to compare with, and predict the same images with it."""
    assert options.against is not None
    folder = run_folder.open_finished(options.against)
    if folder.result()["class_names"] != run.folder.result()["class_names"]:
        raise UserError(
            f"{run.folder.path} and {folder.path} have different classes: no images fit both.\n"
            "Give --against a run of the same data."
        )
    own = _own_data(folder)
    if own.image_size != run.test.size:
        raise UserError(
            f"{run.folder.path} has images of {run.test.size}x{run.test.size} pixels, and "
            f"{folder.path} of {own.image_size}x{own.image_size}: no images fit both.\n"
            "Give --against a run of the same size."
        )
    if options.data is None and (source := own.source) != run.source:
        expected = run.test.fingerprint
        found = test_split(source, size=own.image_size, progress=progress).fingerprint
        if found != expected:
            raise UserError(
                f"{run.folder.path} and {folder.path} have different test splits: {run.source} "
                f"(fingerprint {expected[:12]}) and {source} ({found[:12]}).\n"
                "Give --data to measure both on the same images."
            )
    return _predict_test(folder, run.source, run.test, run.accelerator, progress)


def _held_out(run: EvaluatedRun, progress: Progress | None) -> tuple[Array, Array]:
    """Return logits [V, C] and labels [V] of the held-out part, saved by the run or predicted
    again.

    Raises UserError if nothing was held out or the images are no longer available.
    """
    data = run.folder.result()["data"]
    if not data["val_images"]:
        raise UserError("data.holdout = 0: nothing was held out to fit it on")
    if "val_logits" in run.saved:
        return run.saved["val_logits"], run.saved["val_labels"]
    recipe = recipes.read(run.folder.recipe)
    for source in dict.fromkeys((recipe.data.source, run.source)):
        with suppress(UserError):  # one source may be missing: the images may have moved to --data
            images = load_data_set.load(
                source, "train", size=recipe.data.image_size, progress=progress
            )
            if images.fingerprint == data["fingerprint"]:
                held_out = split_images(recipe, images).held_out
                assert held_out is not None
                return _predict(run, held_out, run.net, progress, "the held-out images")
    raise UserError(f"the images that the run held out are no longer in {recipe.data.source}")


def _predict(
    run: EvaluatedRun, images: ImageSet, net: nn.Module, progress: Progress | None, task: str
) -> tuple[Array, Array]:
    """Return logits [n, C] and labels [n] of a network, computed on the run's device.

    `task`: what the display calls it.
    """
    return to_host(predict_with_progress(net, images, run.accelerator, progress, task))


def _teacher_logits(run: EvaluatedRun, progress: Progress | None) -> Array:
    """Return the teacher's logits [N, C] on the test split, saved by the run or computed again.

    Raises UserError if the run had no teacher, or if its teacher is missing or has changed.
    """
    known = run.folder.result()["teacher"]
    if not known["runs"]:
        raise UserError("this run had no teacher")
    if "teacher_logits" in run.saved:
        return run.saved["teacher_logits"]
    folders = [run_folder.open_finished(path) for path in known["runs"]]
    nets = [load_trained(folder) for folder in folders]
    weights = [run_folder.file_sha256(folder.weights(folder.role)) for folder in folders]
    if "+".join(weights) != known["fingerprint"]:
        raise UserError(f"{' + '.join(known['runs'])} has other weights than during the training")
    combined = combine_teachers(recipes.read(run.folder.recipe), nets)
    teacher = to_device(combined, run.accelerator.device)
    return _predict(run, run.test, teacher, progress, "the teacher's logits")[0]
