"""Assemble the training state from a recipe."""

from collections.abc import Callable
from itertools import product
from typing import cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.components import fingerprints
from distill.components.build_accelerator import build_accelerator
from distill.components.build_loss_terms import build_objective, required_taps
from distill.components.build_network import (
    build_network,
    convert_sync_bn,
    initialise_stem,
    to_device,
)
from distill.components.data_pipeline import (
    TrainValSplit,
    augment_schedule,
    build_loader,
    split_images,
)
from distill.data.loader import Loader
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet, Progress
from distill.errors import UnsuitableRecipe
from distill.losses.objective import Objective
from distill.models import reestimate_batch_norm
from distill.models.features import FeatureExtractor, tap_shapes
from distill.recipe import lr_schedule, schema
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder
from distill.teacher import selection
from distill.teacher.build_teacher import build_live_teacher, build_teacher
from distill.teacher.linear_classifier import class_weights, reuse_classifier
from distill.teacher.teacher import (
    FrozenTeacher,
    LiveTeacher,
    OneTeacherPerView,
    Teacher,
)
from distill.training import optim
from distill.training.agree_on_stopping import ProcessAgreement
from distill.training.divergence import DivergenceMonitor
from distill.training.train_state import TrainState
from students.resnet import ResNet

OPTIMIZER_KEYS = {
    "name", "lr", "bias_lr", "momentum", "betas", "eps", "weight_decay", "decay_norm",
}  # fmt: skip


def check_sides(
    recipe: Recipe,
    net: nn.Module,
    live: LiveTeacher | OneTeacherPerView | None,
    accel: Accelerator,
) -> None:
    """Raise UnsuitableRecipe if the network or a teacher rejects an image size of the training.

    `live`: the teachers; None without a teacher. Costs one forward pass of one image per size and
    network.
    """
    full = recipe.data.image_size
    teachers = [("teacher", each.extractor.net) for each in live.networks] if live else []
    for (_, side), (role, each) in product(
        recipe.train.resolution or (), [("network", net), *teachers]
    ):
        try:
            with accel.autocast():
                tap_shapes(FeatureExtractor(each), side)
        except Exception as fault:  # timm's networks raise errors of many types
            raise UnsuitableRecipe(
                f"train.resolution has size {side}, and the {role} does not take images of "
                f"{side}x{side} pixels: {type(fault).__name__}: {str(fault).partition(chr(10))[0]}."
                f"\nGive larger sizes, or type --set train.resolution=[[0.0,{full}]] for full size."
            ) from fault


def build(
    recipe: Recipe,
    role: Role,
    folder: RunFolder,
    *,
    images: ImageSet | None = None,
    teacher: FrozenTeacher | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Build the training state of a run's recipe at step 0, with its images and teachers.

    `images`, `teacher`: the train split and the teacher; loaded if None. Raises UserError if the
    images or the teacher cannot be read or do not fit the recipe.
    """
    accel = build_accelerator(recipe)
    images, split, teacher = _images_and_teacher(recipe, images, teacher, progress)
    identity = fingerprints.identity(recipe, images, selection.teachers_fingerprint(recipe))
    return build_state(recipe, role, split, teacher, folder, accel, identity)


def build_teacher_alone(recipe: Recipe) -> Teacher:
    """Build the teacher that a run of the recipe queries, without the network that it trains.

    Raises UserError as `build`.
    """
    accel = build_accelerator(recipe)
    images, split, frozen = _images_and_teacher(recipe)
    identity = fingerprints.identity(recipe, images, selection.teachers_fingerprint(recipe))
    loader = build_loader(recipe, split.train, accel)
    if frozen is not None:
        to_device(frozen, accel.device)
    live = None if frozen is None else build_live_teacher(recipe, frozen, loader, accel)
    loader.set_schedule(augment_schedule(recipe, recipe.train.epochs or 1))
    return build_teacher(recipe, live, _cache_identity(identity, split.train, accel))


def _images_and_teacher(
    recipe: Recipe,
    images: ImageSet | None = None,
    teacher: FrozenTeacher | None = None,
    progress: Progress | None = None,
) -> tuple[ImageSet, TrainValSplit, FrozenTeacher | None]:
    """Return the train split, its parts and the teacher; images and teacher are loaded if None."""
    data = recipe.data
    images = images or load_data_set.load(
        data.source, "train", size=data.image_size, progress=progress
    )
    split = split_images(recipe, images)
    return images, split, teacher or selection.load_teacher(recipe, images, split)


def build_state(
    recipe: Recipe,
    role: Role,
    split: TrainValSplit,
    frozen: FrozenTeacher | None,
    folder: RunFolder,
    accel: Accelerator,
    identity: dict[str, str],
) -> TrainState:
    """Build the training state at step 0.

    `split`: the training and held-out images. `frozen`: the teacher, which is moved to the device;
    None without a teacher. `identity`: fingerprints of data and teacher by name; a run is only
    resumed if they are equal.
    """
    loader = build_loader(recipe, split.train, accel)
    if frozen is not None:
        to_device(frozen, accel.device)
    torch.manual_seed(recipe.train.seed)  # initial weights
    model = _build_model(recipe, role, split.train, frozen, accel)
    ema = _build_ema(recipe, model, loader)  # copies the model before it is wrapped and hooked
    extractor = FeatureExtractor(model, required_taps(recipe, "student", model))
    live = None if frozen is None else build_live_teacher(recipe, frozen, loader, accel)
    check_sides(recipe, model, live, accel)
    loss = _build_loss(recipe, extractor, frozen, live, split.train, loader.size, accel)
    model_ddp, optimizer = accel.prepare(extractor, _build_optimizer(recipe, model, loss))
    learns = any(parameter.requires_grad for parameter in loss.parameters())
    state = TrainState(
        role=role,
        accelerator=accel,
        loader=loader,
        model_ddp=model_ddp,
        model=model,
        live_teacher=live,
        teacher=build_teacher(recipe, live, _cache_identity(identity, split.train, accel)),
        loss_ddp=accel.prepare(loss) if learns else loss,
        loss=loss,
        optimizer=optimizer,
        lr=lambda step: recipe.optim.lr,
        clip=recipe.optim.clip,
        ema=ema,
        held_out=split.held_out,
        norm_images=batch_norm_images(recipe, split.train),
        seed=recipe.train.seed,
        total_steps=0,
        settings=recipe.train,
        folder=folder,
        identity=identity,
        ranks=ProcessAgreement(accel),
        divergence=DivergenceMonitor(accel),
    )
    # With a budget in minutes: one epoch, until the speed is measured.
    set_total_steps(state, recipe, (recipe.train.epochs or 1) * loader.steps_per_epoch)
    return state


def _build_model(
    recipe: Recipe,
    role: Role,
    images: ImageSet,
    frozen: FrozenTeacher | None,
    accel: Accelerator,
) -> nn.Module:
    """Build the network to train, with its initial weights, on the device."""
    model = build_network(recipe, role, images.n_classes)
    initialise_stem(model, images)
    if recipe.loss.simkd is not None and frozen is not None:
        reuse_classifier(model, frozen.net)
    return to_device(convert_sync_bn(model, recipe, accel), accel.device)


def _build_loss(
    recipe: Recipe,
    student: FeatureExtractor,
    frozen: FrozenTeacher | None,
    live: LiveTeacher | OneTeacherPerView | None,
    images: ImageSet,
    size: int,
    accel: Accelerator,
) -> Objective:
    """Build the loss for the feature maps of student and teacher, on the device.

    `size`: height and width of the images in pixels, which determine the shapes of the maps.
    """
    with accel.autocast():  # the teacher's weights may have been cast to the autocast type
        teacher_shapes = tap_shapes(live.networks[0].extractor, size) if live else {}
    loss = build_objective(
        recipe,
        student_shapes=tap_shapes(student, size),
        teacher_shapes=teacher_shapes,
        teacher_class_weights=None if frozen is None else class_weights(frozen.net),
        labels=torch.from_numpy(images.labels),
    )
    return convert_sync_bn(loss, recipe, accel).to(accel.device)


def _build_optimizer(recipe: Recipe, model: nn.Module, loss: Objective) -> torch.optim.Optimizer:
    """Build the optimizer of the network's parameters and of those of the loss terms."""
    return optim.optimizer(
        nn.ModuleList([model, loss]),
        **recipe.optim.model_dump(include=OPTIMIZER_KEYS),
        biases=fast_biases(model),
    )


def _cache_identity(
    identity: dict[str, str], images: ImageSet, accel: Accelerator
) -> dict[str, str]:
    """Return the fingerprints and settings that cached teacher logits depend on, by name.

    `images`: those that are trained on.
    """
    depends = {name: value for name, value in identity.items() if name in fingerprints.CACHED}
    return depends | {"part": images.fingerprint, "precision": accel.mixed_precision}


def _build_ema(recipe: Recipe, model: nn.Module, loader: Loader) -> ModelEmaV3 | None:
    """Build the exponential moving average of the weights; None if the recipe has no [ema]."""
    if recipe.ema is None:
        return None
    decay = ema_decay(recipe.ema, loader.steps_per_epoch)
    return ModelEmaV3(
        model, decay=decay, use_warmup=recipe.ema.warmup, warmup_gamma=9, warmup_power=1
    )


def ema_decay(ema: schema.Ema, steps_per_epoch: int) -> float:
    """Return the decay of the weight average per step: `ema.decay`, or computed from
    `ema.half_life`, which is in epochs.
    """
    if ema.half_life is not None:
        return float(0.5 ** (1 / (ema.half_life * steps_per_epoch)))
    assert ema.decay is not None  # the recipe's constraints require one of the two
    return ema.decay


def fast_biases(net: nn.Module) -> list[nn.Parameter]:
    """Return the biases that are trained at `optim.bias_lr` times the learning rate.

    They are the biases of all batch norms, and the bias of a stem without batch norm, as in
    airbench94_muon. D. Page's ResNet-9 scales all biases, airbench96 only those of batch norms.
    """
    biases = optim.batch_norm_biases(net)
    if isinstance(net, ResNet) and isinstance(net.stem_conv.bias, nn.Parameter):
        biases.append(net.stem_conv.bias)
    return biases


def batch_norm_images(recipe: Recipe, images: ImageSet) -> Tensor | None:
    """Return the images, uint8 [n, 3, H, W], on which the batch-norm statistics of the averaged
    weights are re-estimated; None if the recipe does not request it.

    They are the first training images. Training images are ordered by digest, so that the first
    ones are a random sample.
    """
    if recipe.ema is None or recipe.ema.norm_statistics == "averaged":
        return None
    return torch.from_numpy(images.images[: reestimate_batch_norm.N_IMAGES])


def set_total_steps(run: TrainState, recipe: Recipe, steps: int) -> None:
    """Set the total number of steps, and the learning-rate and augmentation schedules for it."""
    run.total_steps = steps
    run.lr = lr_schedule.of_recipe(recipe, steps, run.loader.steps_per_epoch)
    run.loader.set_schedule(augment_schedule(recipe, run.epochs))


def compile_networks(run: TrainState) -> Callable[[], None]:
    """Compile the network and its teachers with torch.compile, from the next step on.

    Compiled and uncompiled networks share their parameters; the uncompiled ones are still saved and
    evaluated. Returns a function that undoes the compilation.
    """
    net, teachers = run.model_ddp, () if run.live_teacher is None else run.live_teacher.networks
    tapped = [teacher.extractor for teacher in teachers]

    def undo() -> None:
        run.model_ddp, run.compiled = net, False
        for teacher, plain in zip(teachers, tapped, strict=True):
            teacher.extractor = plain

    run.model_ddp, run.compiled = cast("nn.Module", torch.compile(net)), True
    for teacher in teachers:
        teacher.extractor = cast("FeatureExtractor", torch.compile(teacher.extractor))
    return undo
