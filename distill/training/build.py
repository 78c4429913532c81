"""Build objects from a recipe: networks, losses, optimizer, data pipeline, state."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from math import fsum
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.data import split as data_split
from distill.data.augment import affine, auto_augment, color, crop_flip, erase, mixup_cutmix, ricap
from distill.data.augment.pipeline import AugmentSchedule, Operation, Pipeline
from distill.data.images import SIDE
from distill.data.loader import Loader, Shard
from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet
from distill.errors import UnsuitableRecipe, UserError
from distill.losses.at import AT
from distill.losses.crd import CRD
from distill.losses.dist import DIST
from distill.losses.dkd import DKD
from distill.losses.fitnet import FitNet
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd
from distill.losses.mse import MSE
from distill.losses.multi_temperature import MultiTemperature
from distill.losses.nst import NST
from distill.losses.objective import LossFunction, LossSchedule, LossTerm, Objective
from distill.losses.pkt import PKT
from distill.losses.reviewkd import ReviewKD
from distill.losses.rkd import RKD
from distill.losses.simkd import SimKD
from distill.losses.soft_mix import SoftMix
from distill.losses.sp import SP
from distill.losses.vid import VID
from distill.models import batch_norm, checkpoint
from distill.models.features import FeatureExtractor, tap_points, tap_shapes
from distill.models.small_maps import use_matrix_products
from distill.models.strided_pointwise import subsample_first
from distill.recipe import recipes, schema
from distill.recipe.loss_schema import Term, arguments, taps
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder
from distill.teacher import freeze
from distill.teacher.reused_classifier import reuse_classifier
from distill.teacher.teacher import (
    FrozenTeacher,
    OneTeacherPerView,
    OnlineTeacher,
    Teacher,
)
from distill.teacher.view_cache import CachedTeacher, ViewOrigin
from distill.training import optim
from distill.training.allocator import keep_freed_memory
from distill.training.divergence import DivergenceMonitor
from distill.training.fingerprints import CACHED
from distill.training.ranks import TIMEOUT, RankAgreement
from distill.training.state import LoggingAndSaving, TrainState
from students import whiten
from students.design import Design, over_budget
from students.resnet import ResNet
from teachers import networks
from teachers.ensemble import Ensemble

LOSSES: dict[str, Callable[..., LossFunction]] = {
    "hard": Hard,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "logit_std": LogitStd,
    "mse": MSE,
    "multi_temperature": MultiTemperature,
    "soft_mix": SoftMix,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "nst": NST,
    "pkt": PKT,
    "rkd": RKD,
    "vid": VID,
    "crd": CRD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
}
# Applied in this order; those that are `before_crop` first.
OPERATIONS: dict[str, Callable[..., Operation]] = {
    "translate": affine.Translate,
    "affine": affine.Affine,
    "rotate": affine.Rotate,
    "trivial": auto_augment.TrivialAugment,
    "rand": auto_augment.RandAugment,
    "jitter": color.ColourJitter,
    "cutout": erase.Cutout,
    "erase": erase.Erase,
}
Module = TypeVar("Module", bound=nn.Module)
OPTIMIZER_KEYS = {
    "name", "lr", "bias_lr", "momentum", "betas", "eps", "weight_decay", "decay_norm",
}  # fmt: skip


@dataclass(frozen=True)
class TrainValSplit:
    """The images a run may see: a part to train on, and one held out or, at holdout 0, None."""

    fingerprint: str  # of the whole train split
    train: ImageSet
    held_out: ImageSet | None


def accelerator(recipe: Recipe) -> Accelerator:
    """Device, precision and processes of a training.

    `auto` is bf16 where the GPU has it, fp16 on older ones, fp32 elsewhere.
    """
    precision: str = recipe.train.precision
    if precision == "auto":
        precision = _native_precision(PartialState(cpu=_is_on_cpu()).device)
    return _opened("no" if precision == "fp32" else precision, recipe.train.accumulate)


def evaluation_accelerator() -> Accelerator:
    """The same for measuring what was trained: float32 whatever the training's precision."""
    return _opened("no", 1)


def _opened(mixed_precision: str, accumulate: int) -> Accelerator:
    if _is_on_cpu():
        keep_freed_memory()
    # float32 is float32: on NVIDIA cards convolutions would otherwise take the shorter TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return Accelerator(
        cpu=_is_on_cpu(),
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulate, sync_with_dataloader=False
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )


def _is_on_cpu() -> bool:
    """Said, not left to be found: without a GPU accelerate joins processes only if told so."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def _native_precision(device: torch.device) -> str:
    if device.type != "cuda":
        return "fp32"  # bf16 without its instructions is an order of magnitude slower
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def split_indices(
    recipe: Recipe, images: ImageSet
) -> tuple[data_split.Indices, data_split.Indices]:
    """Which images a recipe's `[data]`, and nothing else, trains on, and which it holds out."""
    return data_split.split(
        images, holdout=recipe.data.holdout, train_images=recipe.data.train_images
    )


def split_images(recipe: Recipe, images: ImageSet) -> TrainValSplit:
    """The train split, divided."""
    train, held_out = split_indices(recipe, images)
    return TrainValSplit(
        images.fingerprint,
        image_set.subset(images, train),
        image_set.subset(images, held_out) if len(held_out) else None,
    )


def network_table(recipe: Recipe, role: Role) -> schema.Student | schema.Teacher:
    """The table that describes the network of this role. Raises UserError if there is none."""
    found = recipe.student if role == "student" else recipe.teacher
    if found is None:
        raise UserError(f"the recipe has no [{role}] table, so it describes no {role}")
    return found


def design(recipe: Recipe, n_classes: int, role: Role = "student") -> Design:
    """The design of a residual network, the student or a teacher, for the data's classes.

    Raises Unfit if a student is over budget; a teacher has none.
    """
    described = network_table(recipe, role)
    planned = Design.of(**described.spec(), classes=n_classes)
    if isinstance(described, schema.Student):
        fault = over_budget(planned, described.max_params)
        if fault is not None:
            raise UnsuitableRecipe(f"with {n_classes} classes, {fault}")
    return planned


def network(recipe: Recipe, role: Role, n_classes: int) -> nn.Module:
    """The network a run trains, with fresh weights drawn from torch's generator."""
    described = network_table(recipe, role)
    if isinstance(described, schema.Teacher) and described.network != "resnet":
        return networks.build(
            described.network,
            depth=described.depth,
            widen=described.widen,
            dropout=described.dropout,
            classes=n_classes,
        )
    return ResNet(design(recipe, n_classes, role), **described.rates())


def initialise_stem(net: nn.Module, images: ImageSet) -> None:
    """A whitened stem gets its filters from the training part; every other network stays.

    Computed by every process from the same images: the same bits, and no message between them. A
    resumed run has them from its checkpoint.
    """
    if isinstance(net, ResNet) and net.design.stem_init == "whiten":
        pixels = torch.from_numpy(images.images[: whiten.N_IMAGES])
        whiten.whiten(net.stem_conv, pixels, net.normalize.std)


def network_name(recipe: Recipe, role: Role, n_classes: int) -> str:
    """Its name in a table: `WRN-28-10`, `ResNet [4, 4, 3] 64-128-256`."""
    described = network_table(recipe, role)
    if isinstance(described, schema.Teacher) and described.network != "resnet":
        return networks.summary(described.network, depth=described.depth, widen=described.widen)
    return design(recipe, n_classes, role).summary


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """On the device, kernels channels_last: convolutions read them so there.

    On a CPU some convolutions are changed in place, see `pointwise.py` and `small_maps.py`.
    """
    if device.type == "cpu":
        subsample_first(net)
        use_matrix_products(net)
    moved: nn.Module = cast("Any", net).to(device, memory_format=torch.channels_last)
    return moved  # torch's annotations of `to` know no memory format


def convert_sync_bn(net: Module, recipe: Recipe, accel: Accelerator) -> Module:
    """With batch norms that take mean and variance over all processes, where the recipe asks so.

    The parameters, and their names, are those of the network given. Raises Unfit where several
    processes compute without GPUs, for which alone torch has such a norm.
    """
    if not recipe.train.sync_batch_norm or accel.num_processes == 1:
        return net
    if accel.device.type == "cpu":
        raise UnsuitableRecipe(
            f"train.sync_batch_norm = true, and the {accel.num_processes} processes compute on the "
            "CPU: torch's SyncBatchNorm needs GPUs.\nType --set train.sync_batch_norm=false."
        )
    together: Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return together


def load_trained(run: RunFolder) -> nn.Module:
    """A finished run's network with the weights to use, on the host, in eval mode."""
    recipe, result = recipes.read(run.recipe), run.result()
    net = network(recipe, run.role, len(result["class_names"]))
    checkpoint.load_weights(run.weights(run.role), net, result["weights"])
    return net.eval()


def objective(recipe: Recipe, **facts: Any) -> Objective:
    """One loss a term, its arguments the term's own keys and those of `facts` that it takes.

    `student_shapes`, `teacher_shapes`: of the maps asked for; `labels` [N]: of the training part.
    """
    return Objective(
        {name: _build_term(name, term, facts) for name, term in recipe.loss.terms().items()}
    )


def _build_term(name: str, term: Term, facts: dict[str, Any]) -> LossTerm:
    taken = facts.keys() & inspect.signature(LOSSES[name]).parameters
    try:
        loss = LOSSES[name](**arguments(term), **{fact: facts[fact] for fact in taken})
    except ValueError as fault:  # these images or these maps are not for this term
        raise UnsuitableRecipe(f"loss.{name}: {fault}.\nType --set loss.{name}=false.") from fault
    return LossTerm(term.weight, loss, LossSchedule(**term.when.model_dump()), term.needs)


def required_taps(
    recipe: Recipe, whose: Literal["student", "teacher"], net: nn.Module
) -> list[str]:
    """The maps that some term asks of a network. Raises Unfit where one is not there."""
    points = tap_points(net)
    asked = [
        (f"loss.{name}.{key}", tap)
        for name, term in recipe.loss.terms().items()
        for key, tap in taps(term, whose)
    ]
    faults = [
        f'{key}: "{tap}" names no map of the {whose}; allowed: {", ".join(points) or "none"}'
        for key, tap in asked
        if tap not in points
    ]
    if faults:
        raise UnsuitableRecipe("\n".join(faults))
    return list(dict.fromkeys(tap for _, tap in asked))


def loader(recipe: Recipe, images: ImageSet, accel: Accelerator) -> Loader:
    """Raises Unfit where the batch does not divide, or is larger than the set."""
    parts = accel.num_processes * recipe.train.accumulate
    batch_size = recipe.train.batch_size
    if batch_size % parts:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is the global batch and must be divisible by "
            f"processes x accumulate = {accel.num_processes} x {recipe.train.accumulate}.\n"
            f"Type --set train.batch_size={-(-batch_size // parts) * parts}."
        )
    n = len(images.labels)
    if batch_size > n:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is more than the {n} training images.\n"
            f"Type --set train.batch_size={n} or less."
        )
    return Loader(
        images,
        batch_size=batch_size,
        seed=recipe.data.seed,
        pipeline=pipeline(recipe),
        device=accel.device,
        shard=Shard(accel.process_index, accel.num_processes, recipe.train.accumulate),
    )


def pipeline(recipe: Recipe) -> Pipeline:
    """What is done to the images."""
    ops, mixing = recipe.augment, recipe.mix
    return Pipeline(
        crop=crop_flip.Crop(**dict(ops.crop)) if ops.crop else None,
        flip=crop_flip.Flip(**dict(ops.flip)) if ops.flip else None,
        operations=tuple(
            operation(**dict(table))
            for name, operation in OPERATIONS.items()
            if (table := getattr(ops, name)) is not None
        ),
        mixup=mixup_cutmix.Mixup(**dict(mixing.mixup)) if mixing.mixup else None,
        cutmix=mixup_cutmix.Cutmix(**dict(mixing.cutmix)) if mixing.cutmix else None,
        ricap=ricap.Ricap(**dict(mixing.ricap)) if mixing.ricap else None,
    )


def augment_schedule(recipe: Recipe, epochs: int) -> AugmentSchedule:
    """Which view an epoch trains on, when operations and mixing end, and the images' sides.

    Images at their own size are not resized: their views are those of a recipe without sides.
    """
    resolution = recipe.train.resolution or ()
    return AugmentSchedule(
        views=recipe.cache.views if recipe.cache else None,
        operations_end=_clean_from(epochs, recipe.augment.off_last),
        mixing_end=_clean_from(epochs, recipe.mix.off_last),
        sides=tuple((share, None if side == SIDE else side) for share, side in resolution),
        epochs=epochs,
    )


def _clean_from(epochs: int, off_last: float) -> int:
    """The first epoch of the last share `off_last`: if it is above 0, it is one epoch at least.

    A run of a single epoch has no end to switch off. Rounding alone would leave 5 % of 10 epochs
    without effect: round(9.5) is 10.
    """
    begin = round(epochs * (1 - off_last))
    return min(begin, epochs - 1) if off_last > 0 and epochs > 1 else begin


def lr_schedule(recipe: Recipe, total: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The recipe speaks epochs, the loop speaks steps.

    In a budget of minutes the warm-up takes a quarter at most: what the rest is, is not known when
    the recipe is checked.
    """
    longest = total if recipe.train.minutes is None else total // 4
    return partial(
        optim.lr_at,
        total=total,
        warmup=min(round(recipe.optim.warmup_epochs * steps_per_epoch), longest),
        peak=recipe.optim.lr,
        schedule=recipe.optim.schedule,
        min_lr=recipe.optim.min_lr,
        steps_per_epoch=steps_per_epoch,
        step_epochs=recipe.optim.step_epochs,
        gamma=recipe.optim.gamma,
    )


LOGGING_AND_SAVING = {field.name for field in fields(LoggingAndSaving)}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def combine_teachers(recipe: Recipe, nets: Sequence[nn.Module]) -> nn.Module:
    """The teacher of finished networks: with weights and mirror images as the recipe has them.

    With `teacher.draw = "one"` too it is the mean of all: that is measured, one of them is asked.
    """
    wanted = recipe.teacher or schema.Teacher()
    if len(nets) == 1 and not wanted.mirror:
        return nets[0]
    return Ensemble(nets, wanted.weights if len(nets) > 1 else (), mirror=wanted.mirror)


def combination_identity(recipe: Recipe) -> dict[str, str]:
    """What `as_one` depends on beside the networks; empty for a plain mean or a single teacher."""
    wanted = recipe.teacher or schema.Teacher()
    mirror = {"mirror": "true"} if wanted.mirror else {}
    if len(set(wanted.weights)) < 2:
        return mirror
    parts = [weight / max(wanted.weights) for weight in wanted.weights]
    return mirror | {"weights": " ".join(f"{part / fsum(parts):.9g}" for part in parts)}


def online_teacher(
    recipe: Recipe, frozen: FrozenTeacher, batches: Loader, accel: Accelerator
) -> OnlineTeacher | OneTeacherPerView:
    """The teacher made ready to be asked; what was loaded stays as it is, to be measured."""
    wanted = recipe.teacher or schema.Teacher()
    if wanted.draw == "one" and isinstance(frozen.net, Ensemble):
        lives = [
            _online_teacher(recipe, net, batches, accel) for net in frozen.net.single_teachers()
        ]
        weights = wanted.weights or [1.0] * len(lives)
        return OneTeacherPerView(lives, weights, recipe.data.seed)
    return _online_teacher(recipe, frozen.net, batches, accel)


def _online_teacher(
    recipe: Recipe, net: nn.Module, batches: Loader, accel: Accelerator
) -> OnlineTeacher:
    taps = tuple(required_taps(recipe, "teacher", net))
    ready = freeze.prepare_for_inference(net, batches.size, AUTOCAST.get(accel.mixed_precision))
    return OnlineTeacher(FrozenTeacher(to_device(ready, accel.device)), accel, batches, taps)


def check_sides(
    recipe: Recipe,
    net: nn.Module,
    live: OnlineTeacher | OneTeacherPerView | None,
    accel: Accelerator,
) -> None:
    """Raises Unfit if the network, or its teacher, does not take images of some training side.

    Costs one image a side and network.
    """
    teachers = [("teacher", each.extractor.net) for each in live.networks] if live else []
    for (_, side), (role, each) in product(
        recipe.train.resolution or (), [("network", net), *teachers]
    ):
        try:
            with accel.autocast():
                tap_shapes(FeatureExtractor(each), side)
        except Exception as fault:  # timm's networks refuse a size with whatever they trip over
            raise UnsuitableRecipe(
                f"train.resolution has side {side}, and the {role} does not take images of "
                f"{side}x{side} pixels: {type(fault).__name__}: {str(fault).partition(chr(10))[0]}."
                f"\nGive larger sides, or type --set train.resolution=[[0.0,{SIDE}]] for full size."
            ) from fault


def teacher(
    recipe: Recipe, live: OnlineTeacher | OneTeacherPerView | None, depends: dict[str, str]
) -> Teacher:
    """Nobody, the teacher that is there, or its stored answers where the recipe keeps them.

    `depends`: what an answer depends on beside the view; `teacher` joins the fingerprints of
    several by `+`.
    """
    if live is None:
        return Teacher()
    if recipe.cache is None:
        return Teacher(live)
    first, *_ = live.networks
    stored = CachedTeacher(
        live,
        first.loader,
        first.accelerator,
        depends | combination_identity(recipe),
        recipe=recipes.dumps(recipe),
        pairs="pair" in recipes.required_inputs(recipe),
        origin=_origin_of_views(recipe, live, depends)
        if isinstance(live, OneTeacherPerView)
        else None,
    )
    return Teacher(stored)


def _origin_of_views(
    recipe: Recipe, drawn: OneTeacherPerView, depends: dict[str, str]
) -> Callable[[int], ViewOrigin]:
    """The identity under which each view's logits are cached: that of its drawn teacher alone.

    A student of that teacher alone, or one that draws it for the same view, reads the same entry.
    """
    fingerprints = depends.get("teacher", "").split("+")
    alone = [recipes.with_single_teacher(recipe, i) for i in range(len(drawn.networks))]
    origins = [
        ViewOrigin(depends | {"teacher": each} | combination_identity(one), recipes.dumps(one))
        for each, one in zip(fingerprints, alone, strict=True)
    ]
    return lambda view: origins[drawn.choice(view)]


def state(
    recipe: Recipe,
    role: Role,
    split: TrainValSplit,
    frozen: FrozenTeacher | None,
    folder: RunFolder,
    accel: Accelerator,
    identity: dict[str, str],
) -> TrainState:
    """All the parts of a run, at step 0; `identity` is what a resumed run must have in common."""
    batches = loader(recipe, split.train, accel)
    torch.manual_seed(recipe.train.seed)  # initial weights
    student = network(recipe, role, split.train.n_classes)
    initialise_stem(student, split.train)
    if recipe.loss.simkd is not None and frozen is not None:
        reuse_classifier(student, frozen.net)
    student = to_device(convert_sync_bn(student, recipe, accel), accel.device)
    ema = None
    if recipe.ema is not None:  # copied before hooks are set and accelerate wraps the forward
        ema = ModelEmaV3(
            student,
            decay=ema_decay(recipe.ema, batches.steps_per_epoch),
            use_warmup=recipe.ema.warmup,
            warmup_gamma=9,
            warmup_power=1,
        )
    tapped = FeatureExtractor(student, required_taps(recipe, "student", student))
    live = None
    if frozen is not None:
        live = online_teacher(recipe, frozen, batches, accel)
    check_sides(recipe, student, live, accel)
    depends = {name: value for name, value in identity.items() if name in CACHED}
    depends |= {"part": split.train.fingerprint, "precision": accel.mixed_precision}
    with accel.autocast():  # the teacher's kernels may be in its type
        teacher_shapes = tap_shapes(live.networks[0].extractor, batches.size) if live else {}
    criterion = objective(
        recipe,
        student_shapes=tap_shapes(tapped, batches.size),
        teacher_shapes=teacher_shapes,
        labels=torch.from_numpy(split.train.labels),
    )
    criterion = convert_sync_bn(criterion, recipe, accel).to(accel.device)
    bare = optim.optimizer(
        nn.ModuleList([student, criterion]),
        **recipe.optim.model_dump(include=OPTIMIZER_KEYS),
        biases=fast_biases(student),
    )
    net, optimizer = accel.prepare(tapped, bare)
    learns = any(parameter.requires_grad for parameter in criterion.parameters())
    prepared = accel.prepare(criterion) if learns else criterion
    run = TrainState(
        role=role,
        accelerator=accel,
        loader=batches,
        model_ddp=net,
        model=student,
        online_teacher=live,
        teacher=teacher(recipe, live, depends),
        loss_ddp=prepared,
        loss=criterion,
        optimizer=optimizer,
        lr=lambda step: recipe.optim.lr,
        clip=recipe.optim.clip,
        ema=ema,
        held_out=split.held_out,
        norm_images=batch_norm_images(recipe, split.train),
        seed=recipe.train.seed,
        total_steps=0,
        settings=LoggingAndSaving(**recipe.train.model_dump(include=LOGGING_AND_SAVING)),
        folder=folder,
        identity=identity,
        ranks=RankAgreement(accel),
        divergence=DivergenceMonitor(accel),
    )
    # A budget in minutes is an epoch until its pace is measured.
    set_total_steps(run, recipe, (recipe.train.epochs or 1) * batches.steps_per_epoch)
    return run


def ema_decay(ema: schema.Ema, steps_per_epoch: int) -> float:
    """The share that the average keeps in a step: after `half_life` epochs half is left of it."""
    if ema.half_life is not None:
        return float(0.5 ** (1 / (ema.half_life * steps_per_epoch)))
    assert ema.decay is not None  # one of both, by the rules
    return ema.decay


def fast_biases(net: nn.Module) -> list[nn.Parameter]:
    """What `optim.bias_lr` is for: biases of the network's batch norms, and of a stem without one.

    Page has all biases in it, airbench96 those of norms, airbench94_muon these.
    """
    biases = optim.batch_norm_biases(net)
    if isinstance(net, ResNet) and isinstance(net.stem_conv.bias, nn.Parameter):
        biases.append(net.stem_conv.bias)
    return biases


def batch_norm_images(recipe: Recipe, images: ImageSet) -> Tensor | None:
    """The images that batch norms of averaged weights are measured on; None if they are averaged.

    The first of the training part, which lies in the order of digests: a sample of it.
    """
    if recipe.ema is None or recipe.ema.norm_statistics == "averaged":
        return None
    return torch.from_numpy(images.images[: batch_norm.N_IMAGES])


def set_total_steps(run: TrainState, recipe: Recipe, steps: int) -> None:
    """Set how many steps the run has, and what depends on that: learning rate and schedule."""
    run.total_steps = steps
    run.lr = lr_schedule(recipe, steps, run.loader.steps_per_epoch)
    run.loader.set_schedule(augment_schedule(recipe, run.epochs))


def compile_networks(run: TrainState) -> Callable[[], None]:
    """From the next step on the student, and the teacher, are compiled by torch.

    Their parameters are shared: what is saved and measured stays the plain network. Returns how to
    undo it.
    """
    net, teachers = run.model_ddp, () if run.online_teacher is None else run.online_teacher.networks
    tapped = [teacher.extractor for teacher in teachers]

    def undo() -> None:
        run.model_ddp, run.compiled = net, False
        for teacher, plain in zip(teachers, tapped, strict=True):
            teacher.extractor = plain

    run.model_ddp, run.compiled = cast("nn.Module", torch.compile(net)), True
    for teacher in teachers:
        teacher.extractor = cast("FeatureExtractor", torch.compile(teacher.extractor))
    return undo
