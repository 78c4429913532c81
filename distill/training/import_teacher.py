"""Make a teacher's run folder from weights that another program trained."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from distill.components import fingerprints
from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import build_network, network_name, to_device, with_code
from distill.components.choose_normalisation import with_values
from distill.components.data_pipeline import split_images
from distill.components.read_test_split import SplitIdentity, identify_test, test_split
from distill.data.image_set import SIDE, ImageSet
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import Progress
from distill.errors import UserError, collect_faults
from distill.evaluation import final_test, write_results
from distill.events import End, Start, measure_name
from distill.format import counted
from distill.models import checkpoint, cost, foreign_weights, recognise_network
from distill.models.foreign_weights import Weights
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipes import Recipe, RecipeError
from distill.recipe.validation import value_text
from distill.runs import lock, run_folder
from distill.runs.run_folder import RunFolder
from distill.training import environment
from networks import crd_weight_names
from networks.network_catalogue import is_own
from students.normalize_images import KNOWN, set_normalisation

NAME = "imported"  # the run's recipe in tables
# By the names of KNOWN, for the message; and the values of torchvision's and timm's networks.
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RECIPE = environment.ROOT / "recipes" / "import" / "teacher.toml"


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImportRequest:
    """What to import: a network's name, its weights and its normalisation."""

    weights: Path
    recipe: Recipe  # with the network in [teacher] and the images in [data]
    out: Path
    # Of the images in [0, 1] that the network was trained with; empty for those of CIFAR, and for a
    # network whose code normalises its images itself.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImportedTeacher:
    """A network with imported weights, and the images that it belongs to."""

    net: nn.Module
    recipe: Recipe  # of its run folder
    images: ImageSet  # the train split
    test: SplitIdentity
    normalisation: Normalisation | None  # None for a network that has none
    accelerator: Accelerator


def recipe_of(network: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of an imported teacher: its network and images, nothing held out.

    `overrides`: `key=value` for keys of [teacher]. Raises UserError with every fault.
    """
    given = [f"teacher.network={json.dumps(network)}", f"data.source={json.dumps(source)}"]
    try:
        return recipes.load(str(RECIPE), [*given, *overrides]).recipe
    except RecipeError as error:  # the user knows the option, not the recipe that has its value
        typed = f"teacher.network = {value_text(network)} (--set)"
        lines = [fault.replace(typed, f"--network {network}") for fault in error.faults]
        raise UserError("\n".join(lines)) from None


def recognise(weights: Path) -> str:
    """Return the name of the network that the weights in a file belong to.

    Raises UserError if the file cannot be read, or if no named network or several have them.
    """
    found = list(recognise_network.networks_of(foreign_weights.read(weights)))
    if not found:
        raise UserError(
            f"{weights} contains the weights of none of the networks that have a name "
            "(docs/networks.md).\nType --network with the network: timm/NAME or FILE.py:NAME."
        )
    if len(found) > 1:
        options = " or ".join(f"--network {name}" for name, _ in found)
        raise UserError(f"{weights} may hold the weights of several networks: type {options}.")
    return found[0][0]


def check_normalisation(recipe: Recipe, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise UserError if the mean and std are invalid as typed; empty means not typed."""
    if not mean and not std:
        return
    if not _is_normalised(recipe):
        raise UserError("--mean and --std need --set teacher.normalize=true.")
    values = mean + std
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(0 <= v <= 255 for v in values):
        raise UserError(
            "--mean and --std are three numbers each, for red, green and blue of images in [0, 1]; "
            "those of --std are above 0, and none is above 1."
        )
    if max(values) > 1:
        scaled = (",".join(f"{v / 255:.4f}" for v in triple) for triple in (mean, std))
        raise UserError(
            "--mean and --std are for images in [0, 1], but one of them is above 1.\n"
            "If they are for images in 0..255, divide them by 255: "
            "--mean {} --std {}".format(*scaled)
        )


def _is_normalised(recipe: Recipe) -> bool:
    """Whether the project normalises the network's images; the user's own code may do so itself."""
    assert recipe.teacher is not None
    return not is_own(recipe.teacher.network) or recipe.teacher.normalize


def normalisation(request: ImportRequest, images: ImageSet) -> Normalisation | None:
    """Return (mean, std), as typed or known for the images; None for a network that has none.

    `images`: the train split. CIFAR-10 and CIFAR-100 are known in every format. Raises UserError if
    the values are neither typed nor known.
    """
    if not _is_normalised(request.recipe):
        return None
    if request.mean:
        return request.mean, request.std
    source = request.recipe.data.source
    of_archive = None if source == load_data_set.SYNTHETIC else images.normalised_as
    known = of_archive or load_data_set.published_set(images)
    if known is not None:
        return KNOWN[known]
    raise UserError(
        f"the mean and std that the network was trained with are not known for {source}.\n"
        "Type those of its training, for images in [0, 1]:\n"
        + "\n".join(
            f"  {TITLES[name]}: --mean {_typed(mean)} --std {_typed(std)}"
            for name, (mean, std) in (KNOWN | {"imagenet": IMAGENET}).items()
        )
    )


def _typed(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def check_files(request: ImportRequest) -> Weights:
    """Return the weights in the file.

    Raises UserError with every fault of the file, the images and the run folder.
    """
    faults: list[str] = []
    weights: Weights = {}
    with collect_faults(faults):
        run_folder.check_out(RunFolder(request.out), resume=False, can_resume=False)
    with collect_faults(faults):
        load_data_set.check(request.recipe.data.source, size=request.recipe.data.size)
    with collect_faults(faults):
        weights = foreign_weights.read(request.weights)
    if faults:
        raise UserError("\n".join(faults))
    return weights


def import_teacher(
    request: ImportRequest, *, progress: Progress | None = None
) -> Generator[Start | End]:
    """Load the weights, measure them on the test split and write the run folder.

    Yields the events for the journal.

    Raises UserError if the weights cannot be read or do not fit the network, if the images'
    normalisation is not known, or if the folder cannot be used; nothing is written then.
    """
    folder, teacher = RunFolder(request.out), _load_teacher(request, progress)
    with lock.lock_run_folder(folder.path):
        run_folder.check_out(folder, resume=False, can_resume=False)
        yield from _measure_and_write(folder, request, teacher, progress)


def _load_teacher(request: ImportRequest, progress: Progress | None) -> ImportedTeacher:
    """Load images and weights into memory. Raises UserError as `import_teacher` does."""
    weights = check_files(request)
    recipe, accel = with_code(request.recipe, "teacher"), evaluation_accelerator()
    source, size = recipe.data.source, recipe.data.size
    images = load_data_set.load(source, "train", size=size, progress=progress)
    test = identify_test(source, images, size=size, progress=progress)
    recipe = recipe_variants.with_data(recipe, size=None if images.size == SIDE else images.size)
    net = build_network(recipe, "teacher", images.n_classes)
    faults: list[str] = []
    values: Normalisation | None = None
    with collect_faults(faults):
        values = normalisation(request, images)
    with collect_faults(faults):
        _load_weights(net, weights, request, images.n_classes)
    if faults:
        raise UserError("\n".join(faults))
    recipe = with_values(recipe, values)
    if values is not None:  # the file may have other values
        set_normalisation(net, *values)
    return ImportedTeacher(net, recipe, images, test, values, accel)


def _measure_and_write(
    folder: RunFolder, request: ImportRequest, teacher: ImportedTeacher, progress: Progress | None
) -> Generator[Start | End]:
    """Measure the teacher on the test split and write the files of its run folder.

    Yields the events for the journal.
    """
    recipe, net, accel = teacher.recipe, teacher.net, teacher.accelerator
    start = _start_event(folder, request, teacher)
    data = _data(recipe, teacher.images, teacher.test)
    write_results.check_result(recipe, start, data, "")
    run_folder.write_text(folder.recipe, recipes.dumps(recipe))
    run_folder.write_json(folder.environment, environment.describe(accel))
    yield start
    test = test_split(recipe.data.source, size=teacher.images.size, progress=progress)
    to_device(net, accel.device)
    tested = final_test.measure_on_test(folder, net, None, None, test, accel, progress=progress)
    path = folder.weights("teacher")
    checkpoint.save_weights(path, checkpoint.copy_weights(net))
    end = End(0, tested, start.parameters, 0.0, str(path))
    yield end
    imported = _origin(request, teacher.normalisation)
    write_results.write_result(folder, recipe, start, end, data, "", imported=imported)


def _start_event(folder: RunFolder, request: ImportRequest, teacher: ImportedTeacher) -> Start:
    """Return the start event of a run without training steps."""
    recipe, images = teacher.recipe, teacher.images
    return Start(
        run=str(folder.path), role="teacher", recipe=NAME,
        network=network_name(recipe, "teacher", images.n_classes),
        parameters=cost.count_parameters(teacher.net), data=recipe.data.source,
        train_images=len(images.labels), val_images=0, n_classes=images.n_classes, processes=1,
        device=teacher.accelerator.device.type, precision="fp32",
        batch_size=recipe.train.batch_size, epochs=0, steps_per_epoch=0, first_step=0,
        notes=(f"the weights were imported from {request.weights.name}",),
    )  # fmt: skip


def top1(folder: RunFolder) -> float:
    """Return the imported teacher's accuracy on the test split, 0..1."""
    return float(folder.result()["metrics"][measure_name("top1", "test")])


def _data(recipe: Recipe, images: ImageSet, test: SplitIdentity) -> dict[str, Any]:
    identity = fingerprints.identity(recipe, images, "", test)
    return {
        "fingerprint": split_images(recipe, images).fingerprint,
        "class_names": list(images.class_names),
        "test_fingerprint": identity["test"],
        "test_images": test.n_images,
        "class_names_fingerprint": identity["class_names"],
    }


def _load_weights(net: nn.Module, weights: Weights, request: ImportRequest, classes: int) -> None:
    """Load the weights.

    Raises UserError, which lists all differences and the network that the weights fit.
    """
    assert request.recipe.teacher is not None
    network = request.recipe.teacher.network
    try:
        foreign_weights.load_into(
            net,
            weights,
            f"{request.weights} does not hold the weights of {network} for "
            f"{counted(classes, 'class', 'classes')}",
            partial(crd_weight_names.translate, network),
            partial(crd_weight_names.original, network),
        )
    except UserError as fault:
        raise UserError(f"{fault}{_hint(weights, request, classes)}") from None


def _hint(weights: Weights, request: ImportRequest, classes: int) -> str:
    """Return what to type instead if the weights are those of another network or other classes."""
    assert request.recipe.teacher is not None
    network, source = request.recipe.teacher.network, request.recipe.data.source
    found = list(recognise_network.networks_of(weights))
    if network not in dict(found) and found:
        others = " or ".join(f"--network {name}" for name, _ in found)
        hint = f"\nThese are the weights of another network: type {others}"
        found_classes = found[0][1]
    else:
        hint, found_classes = "", recognise_network.n_classes(weights, network) or classes
    if found_classes != classes:
        hint += (
            f"\nIts linear classifier has {counted(found_classes, 'class', 'classes')}, but "
            f"{source} has {classes}: type --data with the images that it was trained on"
        )
        hint += ", such as cifar100" if found_classes == 100 else ""
    return f"{hint}." if hint else ""


def _origin(request: ImportRequest, values: Normalisation | None) -> dict[str, Any]:
    mean, std = values or (None, None)
    digest = run_folder.file_sha256(request.weights)
    return {"file": request.weights.name, "sha256": digest, "mean": mean, "std": std}
