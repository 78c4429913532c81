"""Build the network that a recipe describes; load a trained one; move it to a device."""

import sys
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import nn

from distill.components import choose_normalisation
from distill.data.sources.load_data_set import ImageSet
from distill.errors import UnsuitableRecipe, UserError
from distill.files import run_json_schemas
from distill.format import counted, format_size
from distill.models import checkpoint, cost
from distill.models.convolutions_of_small_maps import use_matrix_products
from distill.models.strided_pointwise import subsample_first
from distill.recipe import describe_network, recipes, schema
from distill.recipe.recipes import Recipe
from distill.runs import check_runs_match
from distill.runs.run_folder import Role, RunFolder
from networks import by_name, user_code
from networks.network_catalogue import is_own
from students import whitened_stem
from students.design import Design
from students.normalize_images import normalises, set_normalisation
from students.resnet import ResNet

Module = TypeVar("Module", bound=nn.Module)
FLOAT32 = 4  # bytes of a parameter of the networks that a recipe describes


def network_table(recipe: Recipe, role: Role) -> schema.Student | schema.Teacher:
    """Return the recipe's table [student] or [teacher]. Raises UserError if it is absent."""
    found = recipe.student if role == "student" else recipe.teacher
    if found is None:
        raise UserError(f"the recipe has no [{role}] table, so it describes no {role}")
    return found


def build_design(recipe: Recipe, n_classes: int, role: Role = "student") -> Design:
    """Return the design of a recipe's ResNet, student or teacher, for the number of classes.

    Raises UnsuitableRecipe if a student has more parameters than `student.max_params` allows.
    """
    described = network_table(recipe, role)
    _check_budget(recipe, described, n_classes)
    size = recipe.data.image_size
    return Design.of(**described.spec(), classes=n_classes, image_size=size)


def build_network(recipe: Recipe, role: Role, n_classes: int) -> nn.Module:
    """Build the network that a run trains; initial weights are drawn from torch's generator.

    It normalises images as `data.normalize` says, or by CIFAR-10's mean and std if that is absent.
    Raises UnsuitableRecipe if a student is over budget, UserError if the network cannot be built.
    """
    net = _with_random_weights(recipe, role, n_classes)
    if recipe.data.normalize is not None and normalises(net):
        set_normalisation(net, *choose_normalisation.constants(recipe))
    return net


def _with_random_weights(recipe: Recipe, role: Role, n_classes: int) -> nn.Module:
    described = network_table(recipe, role)
    if describe_network.is_described_by_design(described):
        return ResNet(build_design(recipe, n_classes, role), **described.rates())
    _check_budget(recipe, described, n_classes)
    if is_own(described.network):
        net: nn.Module = user_code.build(
            described.network,
            described.args.model_extra or {},
            normalize=described.normalize,
            classes=n_classes,
            image_size=recipe.data.image_size,
            sha256=described.code,
        )
    else:
        keys = described.model_dump(include=set(schema.WRN_KEYS))
        size = recipe.data.image_size
        net = by_name.build(described.network, **keys, classes=n_classes, image_size=size)
    if isinstance(described, schema.Student):
        _raise_if(describe_network.size_fault(described, cost.count_parameters(net)), n_classes)
    return net


def count_by_building(recipe: Recipe, role: Role, n_classes: int = 10) -> dict[str, int]:
    """Build a network, and return its `parameters`, those that are `trainable`, and the `macs` of
    one image of the recipe's size.

    A student may exceed its budget. No weights are allocated, unless the network is the user's own
    code and reads them. Raises UserError if the network cannot be built.
    """
    table = network_table(recipe, role)
    if isinstance(table, schema.Student):
        table = table.model_copy(update={"max_params": sys.maxsize})
        recipe = recipe.model_copy(update={"student": table})
    net = build_without_weights(recipe, role, n_classes)
    return {
        "parameters": cost.count_parameters(net),
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "macs": cost.count_macs(net.eval(), recipe.data.image_size),
    }


def build_without_weights(recipe: Recipe, role: Role, n_classes: int) -> nn.Module:
    """Build a network on the meta device; one of the user's own code that cannot be built there is
    built with weights. Raises as `build_network`.
    """
    try:
        with torch.device("meta"):
            return build_network(recipe, role, n_classes)
    except UserError:  # the user's own code may need weights
        if not is_own(network_table(recipe, role).network):
            raise
        return build_network(recipe, role, n_classes)


def check_weights_file(recipe: Recipe, role: Role, n_classes: int, path: Path) -> None:
    """Raise UserError if a file is missing or too small for the weights of a recipe's network.

    This is checked before the network is built, since a recipe that somebody else wrote may
    describe a network larger than the memory. The size of a network of the user's own code is that
    on the meta device, and is not checked if the code cannot be built there.
    """
    try:
        found = path.stat().st_size
    except OSError as fault:
        raise UserError(f"{path} cannot be read as weights: {fault}.") from fault
    table = network_table(recipe, role)
    described = describe_network.describe(table, n_classes, recipe.data.image_size)
    if described is not None:
        parameters, needed = described.parameters, FLOAT32 * described.parameters
    else:
        try:
            with torch.device("meta"):
                net = build_network(recipe, role, n_classes)
        except UserError:
            if not is_own(table.network):
                raise
            return
        parameters, needed = cost.count_parameters(net), sum(p.nbytes for p in net.parameters())
    if needed > found:
        raise UserError(
            f"{path} is not the file that its run wrote: it has {format_size(found)}, and the "
            f"{parameters:,} parameters of {network_name(recipe, role, n_classes)} need "
            f"{format_size(needed)}.\nRestore it, or train it again in another --out."
        )


def with_code(recipe: Recipe, role: Role) -> Recipe:
    """Return the recipe with the sha256 of the code of its network, if that is the user's own.

    Raises UserError if the code is not allowed or cannot be read.
    """
    described = network_table(recipe, role)
    if not is_own(described.network):
        return recipe
    code = user_code.source_of(described.network).sha256
    return recipe.model_copy(update={role: described.model_copy(update={"code": code})})


def _check_budget(
    recipe: Recipe, described: schema.Student | schema.Teacher, n_classes: int
) -> None:
    """Raise UnsuitableRecipe if a student is over budget and its size is known without building."""
    if isinstance(described, schema.Student):
        fault = describe_network.budget_fault(described, n_classes, recipe.data.image_size)
        _raise_if(fault, n_classes)


def _raise_if(fault: str | None, n_classes: int) -> None:
    """Raise UnsuitableRecipe with this fault, if there is one."""
    if fault is not None:
        raise UnsuitableRecipe(f"with {counted(n_classes, 'class', 'classes')}, {fault}")


def initialise_stem(net: nn.Module, images: ImageSet) -> None:
    """Compute the filters of a whitened stem from training images; leave other networks unchanged.

    Every process computes the filters from the same images, so that they are equal bit for bit
    without communication. A resumed run reads the filters from its checkpoint instead.
    """
    if isinstance(net, ResNet) and net.design.stem_init == "whiten":
        pixels = torch.from_numpy(images.images[: whitened_stem.N_IMAGES])
        whitened_stem.whiten(net.stem_conv, pixels, net.normalize.std)


def network_name(recipe: Recipe, role: Role, n_classes: int) -> str:
    """Return a short name for tables: `WRN-28-10`, `ResNet [4, 4, 3] 64-128-256`, `resnet20`."""
    return describe_network.summary(network_table(recipe, role), n_classes, recipe.data.image_size)


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in channels_last, the fastest memory format of convolutions.

    On a CPU some convolutions are replaced in place by faster or safer ones: see
    `strided_pointwise.py` and `convolutions_of_small_maps.py` in `distill/models/`.
    """
    if device.type == "cpu":
        subsample_first(net)
        use_matrix_products(net)
    moved: nn.Module = cast("Any", net).to(device, memory_format=torch.channels_last)
    return moved  # torch's annotations of `to` know no memory format


def convert_sync_bn(net: Module, recipe: Recipe, accelerator: Accelerator) -> Module:
    """Replace batch norms by SyncBatchNorm if the recipe requests it and there are several ranks.

    The names of parameters do not change. Raises UnsuitableRecipe for several processes on CPUs:
    torch has SyncBatchNorm for GPUs only.
    """
    if not recipe.train.sync_batch_norm or accelerator.num_processes == 1:
        return net
    if accelerator.device.type == "cpu":
        raise UnsuitableRecipe(
            f"train.sync_batch_norm = true, and the {accelerator.num_processes} processes compute "
            "on the CPU: torch's SyncBatchNorm needs GPUs.\nType --set train.sync_batch_norm=false."
        )
    converted: Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return converted


def load_trained(run: RunFolder) -> nn.Module:
    """Load a finished run's network with its final weights, on the CPU, in eval mode.

    Raises UserError as `load_trained_and_sha256`.
    """
    return load_trained_and_sha256(run)[0]


def load_trained_and_sha256(run: RunFolder) -> tuple[nn.Module, str]:
    """Load a finished run's network, on the CPU, in eval mode; return it and its file's sha256.

    The sha256, hex, is that of the bytes that were loaded. Raises UserError if recipe.toml changed
    after the run finished, if the weights file is not the one that the run wrote, or if result.json
    has another number of parameters.
    """
    check_runs_match.check_recipe_of_result(run)
    recipe, result = recipes.read(run.recipe), run.result()
    n_classes, weights = len(result["class_names"]), run.weights(run.role)
    check_weights_file(recipe, run.role, n_classes, weights)
    net = build_network(recipe, run.role, n_classes)
    checkpoint.load_weights(weights, net, result["weights"])
    found, recorded = cost.count_parameters(net), result.get("parameters")
    if recorded not in (None, found):
        raise UserError(
            f"{run.result_file} contradicts the network: it has {recorded:,} parameters instead of "
            f"{found:,}.\n{run_json_schemas.RETRAIN}"
        )
    return net.eval(), result["weights"]
