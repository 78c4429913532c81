"""Make a teacher's run folder from weights that another program trained."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.components import fingerprints
from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import build_network, network_name, to_device, with_code
from distill.components.data_pipeline import split_images
from distill.components.normalisation import with_values
from distill.components.read_test_split import identify_test, test_split
from distill.data.image_set import SIDE
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import Progress
from distill.errors import UserError
from distill.evaluation import final_test, write_results
from distill.events import End, Start, measure_name
from distill.models import checkpoint, cost, foreign_weights
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import lock, run_folder
from distill.runs.run_folder import RunFolder
from distill.training import environment
from networks import crd_weight_names
from networks.network_catalogue import is_own
from students.normalize_images import KNOWN, set_normalisation

LARGEST = 1_000  # mean or std, as in `data.normalize`
NAME = "imported"  # the run's recipe in tables
RECIPE = environment.ROOT / "recipes" / "import" / "teacher.toml"


@dataclass(frozen=True)
class ImportRequest:
    """What to import: a network's name, its weights and its normalisation."""

    weights: Path
    recipe: Recipe  # with the network in [teacher] and the images in [data]
    out: Path
    # (mean, std) of each channel of images in [0, 1], which the network expects; None if its code
    # normalises its images itself
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None


def recipe_of(network: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of an imported teacher: its network and images, nothing held out.

    `overrides`: `key=value` for keys of [teacher]. Raises RecipeError with every fault.
    """
    given = [f"teacher.network={json.dumps(network)}", f"data.source={json.dumps(source)}"]
    return recipes.load(str(RECIPE), [*given, *overrides]).recipe


def normalisation(
    recipe: Recipe, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (mean, std), as given or known for the images; None for a network that has none.

    `mean`, `std`: as typed; empty if they were not. Raises UserError if they are invalid, or if
    they are neither given nor known.
    """
    teacher, source = recipe.teacher, recipe.data.source
    assert teacher is not None
    if is_own(teacher.network) and not teacher.normalize:
        if mean or std:
            raise UserError("--mean and --std need --set teacher.normalize=true.")
        return None
    if not mean and not std:
        if source not in KNOWN:
            raise UserError(
                f"the normalisation that the network was trained with is not known for {source}.\n"
                "Type --mean R,G,B --std R,G,B, for images in [0, 1]."
            )
        return KNOWN[source]
    is_in_range = all(-LARGEST <= value <= LARGEST for value in mean + std)  # false for NaN
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not is_in_range:
        raise UserError(
            "--mean and --std are three numbers each, for red, green and blue; those of --std are "
            f"above 0, and none is above {LARGEST:,}."
        )
    return mean, std


def import_teacher(
    request: ImportRequest, *, progress: Progress | None = None
) -> Generator[Start | End]:
    """Load the weights, measure them on the test split and write the run folder.

    Yields the events for the journal.

    Raises UserError if the weights cannot be read or do not fit the network, or if the folder
    cannot be used; nothing is written then.
    """
    folder = RunFolder(request.out)
    run_folder.check_out(folder, resume=False)
    recipe, accel = with_code(request.recipe, "teacher"), evaluation_accelerator()
    recipe = with_values(recipe, request.normalisation)
    source = recipe.data.source
    size = recipe.data.size
    load_data_set.check(source, size=size)
    images = load_data_set.load(source, "train", size=size, progress=progress)
    test_identity = identify_test(source, images, size=size, progress=progress)
    recipe = recipes.with_data(recipe, size=None if images.size == SIDE else images.size)
    net = build_network(recipe, "teacher", images.n_classes)
    assert recipe.teacher is not None
    translate = partial(crd_weight_names.translate, recipe.teacher.network)
    weights = foreign_weights.read(request.weights)
    foreign_weights.load_into(net, weights, str(request.weights), translate)
    if request.normalisation is not None:  # the file may have other values
        set_normalisation(net, *request.normalisation)
    with lock.lock_run_folder(folder.path):
        run_folder.check_out(folder, resume=False)
        start = Start(
            run=str(folder.path), role="teacher", recipe=NAME,
            network=network_name(recipe, "teacher", images.n_classes),
            parameters=cost.count_parameters(net), data=source, train_images=len(images.labels),
            val_images=0, n_classes=images.n_classes, processes=1, device=accel.device.type,
            precision="fp32", batch_size=recipe.train.batch_size, epochs=0, steps_per_epoch=0,
            first_step=0, notes=(f"the weights were imported from {request.weights.name}",),
        )  # fmt: skip
        data = _data(recipe, images, test_identity)
        write_results.check_result(recipe, start, data, "")
        run_folder.write_text(folder.recipe, recipes.dumps(recipe))
        run_folder.write_json(folder.environment, environment.describe(accel))
        yield start
        test = test_split(source, size=images.size, progress=progress)
        to_device(net, accel.device)
        tested = final_test.measure_on_test(folder, net, None, None, test, accel, progress=progress)
        path = folder.weights("teacher")
        checkpoint.save_weights(path, checkpoint.copy_weights(net))
        end = End(0, tested, start.parameters, 0.0, str(path))
        yield end
        write_results.write_result(folder, recipe, start, end, data, "", imported=_origin(request))


def top1(folder: RunFolder) -> float:
    """Return the imported teacher's accuracy on the test split, 0..1."""
    return float(folder.result()["metrics"][measure_name("top1", "test")])


def _data(recipe: Recipe, images: Any, test: Any) -> dict[str, Any]:
    identity = fingerprints.identity(recipe, images, "", test)
    return {
        "fingerprint": split_images(recipe, images).fingerprint,
        "class_names": list(images.class_names),
        "test_fingerprint": identity["test"],
        "test_images": test.n_images,
        "class_names_fingerprint": identity["class_names"],
    }


def _origin(request: ImportRequest) -> dict[str, Any]:
    mean, std = request.normalisation or (None, None)
    digest = run_folder.file_sha256(request.weights)
    return {"file": request.weights.name, "sha256": digest, "mean": mean, "std": std}
