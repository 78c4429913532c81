"""Evaluate a finished run on the test split in all requested ways."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet, Progress
from distill.errors import UserError
from distill.evaluation import figures, results
from distill.evaluation.predict import (
    FlipTTA,
    SixViewTTA,
    check_finite,
    check_tested,
    logits_and_labels,
    test_split,
)
from distill.evaluation.robustness import robustness
from distill.evaluation.temperature import calibrate
from distill.format import describe_class_difference
from distill.models import checkpoint, cost
from distill.recipe import recipes
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder
from distill.training import build
from students.resnet import ResNet

CALIBRATED = ("temperature", "nll_calibrated", "ece_calibrated")
TAUGHT = ("teacher_agreement", "teacher_kl")


@dataclass(frozen=True)
class EvalOptions:
    """What is wanted beside the figures that always are. `data=None`: the run's own source."""

    data: str | None = None
    against: Path | None = None  # another finished run
    mirror: bool = False
    latency: bool = False
    robustness: bool = False
    robustness_images: int | None = None  # None: all
    six_views: bool = False


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with its network, and what that says of the test split today."""

    folder: RunFolder
    net: nn.Module
    source: str
    test: ImageSet
    accelerator: Accelerator
    logits: Tensor  # [N, C], on the host
    labels: Tensor  # [N]
    kept: dict[str, Tensor]  # of evaluation.npz, where it speaks of the same network and images


def evaluate_run(
    folder: RunFolder, options: EvalOptions | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """The figures of a finished run on a test split, in float32; called by all processes.

    Figures that cannot be had are None, and `absent` says why. Raises UserError where the data has
    other classes than the run was trained for, or another run another test split.
    """
    options = options or EvalOptions()
    run = _load(folder, options.data, progress)
    other = None if options.against is None else _load_other(run, options, progress)
    return {
        **_description(run),
        **figures.headline_measures(run.logits, run.labels),
        **_calibration_and_agreement(run, progress),
        "per_class": figures.per_class(run.logits, run.labels, run.test.class_names),
        "confusion": figures.confusion(run.logits, run.labels),
        **_optional_figures(run, other, options, progress),
    }


def _calibration_and_agreement(run: EvaluatedRun, progress: Progress | None) -> dict[str, Any]:
    """What needs images held out or a teacher; None, and why, where these are not there."""
    parts: dict[tuple[str, ...], Callable[[], dict[str, float]]] = {
        CALIBRATED: lambda: calibrate(_held_out(run, progress), run.logits, run.labels),
        TAUGHT: lambda: figures.compare_with_teacher(run.logits, _teacher_logits(run)),
    }
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for names, find in parts.items():
        try:
            found |= find()
        except UserError as fault:
            found |= dict.fromkeys(names)
            absent[names[0]] = str(fault).splitlines()[0]
    return found | {"absent": absent}


def _optional_figures(
    run: EvaluatedRun, other: EvaluatedRun | None, options: EvalOptions, progress: Progress | None
) -> dict[str, Any]:
    """What takes longer, each under a name of its own."""
    found: dict[str, Any] = {}
    if other is not None:
        found["against"] = {
            **_description(other),
            **figures.headline_measures(other.logits, run.labels),
            **figures.compare_networks(run.logits, other.logits, run.labels),
        }
    if options.mirror:
        both, labels = logits_and_labels(FlipTTA(run.net), run.test, run.accelerator)
        found["mirror"] = figures.headline_measures(both.cpu(), labels.cpu())
    if options.six_views:
        mean, labels = logits_and_labels(SixViewTTA(run.net), run.test, run.accelerator)
        found["test_time_augmentation"] = {
            "views": 6,
            **figures.headline_measures(mean.cpu(), labels.cpu()),
        }
    if options.latency:
        if run.accelerator.is_main_process:  # alone: the others would take its time
            found["latency_ms"] = cost.measure_latency(run.net)
        run.accelerator.wait_for_everyone()
    if options.robustness:
        n_images = options.robustness_images
        found["robustness"] = robustness(run.net, run.test, run.accelerator, n_images, progress)
    return found


def _load(folder: RunFolder, source: str | None, progress: Progress | None) -> EvaluatedRun:
    accel = build.evaluation_accelerator()
    wanted = source or _own_source(folder)
    with accel.main_process_first():  # one process decodes, the others find the cache
        test = test_split(wanted, progress=progress)
    if source is None:
        _check_classes(folder, wanted, test)
        check_tested(folder, test, wanted)
    return _predict_test(folder, wanted, test, accel)


def _predict_test(
    folder: RunFolder, source: str, test: ImageSet, accel: Accelerator
) -> EvaluatedRun:
    """The network asked about every image."""
    _check_classes(folder, source, test)
    net = build.to_device(build.load_trained(folder), accel.device)
    logits, labels = (each.cpu() for each in logits_and_labels(net, test, accel))
    check_finite(logits, folder)
    kept = results.read_evaluation(folder, logits)
    return EvaluatedRun(folder, net, source, test, accel, logits, labels, kept)


def _own_source(folder: RunFolder) -> str:
    source: str = recipes.read(folder.recipe).data.source
    return source


def _description(run: EvaluatedRun) -> dict[str, Any]:
    """Which run, which network, on what."""
    known = run.folder.result()
    macs = run.net.design.macs if isinstance(run.net, ResNet) else cost.count_macs(run.net)
    return {
        "run": str(run.folder.path),
        "role": known["role"],
        "network": known["network"],
        "parameters": cost.count_parameters(run.net),
        "macs": macs,
        "data": run.source,
        "n": len(run.labels),
    }


def _check_classes(folder: RunFolder, source: str, test: ImageSet) -> None:
    known = folder.result()["class_names"]
    if list(test.class_names) != known:
        ours, theirs = describe_class_difference(known, test.class_names)
        raise UserError(
            f"run {folder.path} knows the classes {ours}; {source} has {theirs}.\n"
            "Give --data with the run's own classes."
        )


def _load_other(run: EvaluatedRun, options: EvalOptions, progress: Progress | None) -> EvaluatedRun:
    """The run to compare with, asked about the very same images."""
    assert options.against is not None
    folder = run_folder.open_finished(options.against)
    if folder.result()["class_names"] != run.folder.result()["class_names"]:
        raise UserError(
            f"{run.folder.path} and {folder.path} know other classes: no images are for both.\n"
            "Give --against a run of the same data."
        )
    if options.data is None and (theirs := _own_source(folder)) != run.source:
        fingerprints = [
            each.fingerprint for each in (run.test, test_split(theirs, progress=progress))
        ]
        if fingerprints[0] != fingerprints[1]:
            ours, other = (each[:12] for each in fingerprints)
            raise UserError(
                f"{run.folder.path} and {folder.path} have different test splits: {run.source} "
                f"(fingerprint {ours}) and {theirs} ({other}).\n"
                "Give --data to measure both on the same images."
            )
    return _predict_test(folder, run.source, run.test, run.accelerator)


def _held_out(run: EvaluatedRun, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """Logits [V, C] and labels [V] of the held-out part, as the run kept them or predicted again.

    Raises UserError where nothing was held out or the images are not to be had.
    """
    known = run.folder.result()["data"]
    if not known["val_images"]:
        raise UserError("data.holdout = 0: nothing was held out that it could be fitted on")
    if "val_logits" in run.kept:
        return run.kept["val_logits"], run.kept["val_labels"]
    recipe = recipes.read(run.folder.recipe)
    for source in dict.fromkeys((recipe.data.source, run.source)):
        with suppress(UserError):  # it may lie elsewhere by now: then --data says where
            images = image_set.load(source, "train", progress=progress)
            if images.fingerprint == known["fingerprint"]:
                return _predicted(run, build.split_images(recipe, images).held_out)
    raise UserError(
        f"the images that the run held out are not to be had from {recipe.data.source} any more"
    )


def _predicted(run: EvaluatedRun, images: ImageSet | None) -> tuple[Tensor, Tensor]:
    assert images is not None
    logits, labels = logits_and_labels(run.net, images, run.accelerator)
    return logits.cpu(), labels.cpu()


def _teacher_logits(run: EvaluatedRun) -> Tensor:
    """What taught says of the test split [N, C], as the run kept it or asked again.

    Raises UserError where nobody taught, or who did is gone or another by now.
    """
    known = run.folder.result()["teacher"]
    if not known["runs"]:
        raise UserError("nobody taught this run")
    if "teacher_logits" in run.kept:
        return run.kept["teacher_logits"]
    folders = [run_folder.open_finished(path) for path in known["runs"]]
    nets = [build.load_trained(each) for each in folders]
    weights = [checkpoint.weights_fingerprint(each.weights(each.role)) for each in folders]
    if "+".join(weights) != known["fingerprint"]:
        raise UserError(f"{' + '.join(known['runs'])} has other weights than when it taught")
    as_it_taught = build.combine_teachers(recipes.read(run.folder.recipe), nets)
    teacher = build.to_device(as_it_taught, run.accelerator.device)
    return logits_and_labels(teacher, run.test, run.accelerator)[0].cpu()
