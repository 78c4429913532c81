"""From a recipe to objects: the only room that knows both the word and the class."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from distill import recipe as recipes
from distill.data import augment, holdout, mix, sources
from distill.data.loader import Loader, Slice
from distill.data.sources import ImageSet
from distill.engine import checkpoint, optim
from distill.engine.teach import Frozen, Live, Teach, nobody
from distill.engine.train import Training
from distill.errors import UserError
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.objective import Loss, Objective, Weighted
from distill.recipe import Recipe
from distill.run_folder import Role, RunFolder, opened, runs_in
from students.design import Design
from students.resnet import ResNet
from teachers import networks
from teachers.ensemble import Ensemble

LOSSES: dict[str, type[Loss]] = {"hard": Hard, "kd": KD}
OPTIMIZER_KEYS = {"name", "lr", "momentum", "weight_decay", "decay_norm"}


@dataclass(frozen=True)
class Split:
    """The images a run may see: one part to train on, one held out (None where `data.holdout` is 0)."""

    fingerprint: str  # of the whole train split
    train: ImageSet
    held_out: ImageSet | None


def accelerator(recipe: Recipe) -> Accelerator:
    """Device, precision and processes. `auto` is bf16 where the GPU has it, fp16 on older ones, fp32 elsewhere."""
    precision = recipe.train.precision
    if precision == "auto":
        precision = _native_precision()
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=recipe.train.accumulate,
    )


def _native_precision() -> str:
    if not torch.cuda.is_available():
        return "fp32"  # bf16 without its instructions is an order of magnitude slower
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def divide(recipe: Recipe, images: ImageSet) -> Split:
    """The train split, divided by the recipe's `[data]` and nothing else."""
    train, held_out = holdout.split(
        images, holdout=recipe.data.holdout, train_images=recipe.data.train_images
    )
    return Split(
        images.fingerprint,
        sources.subset(images, train),
        sources.subset(images, held_out) if len(held_out) else None,
    )


def design(recipe: Recipe, n_classes: int) -> Design:
    """The student's design. Raises UserError where the recipe has no `[student]`."""
    if recipe.student is None:
        raise UserError("the recipe has no [student] table, so it describes no student")
    return Design.of(**recipe.student.spec(), classes=n_classes)


def network(recipe: Recipe, role: Role, n_classes: int) -> nn.Module:
    """The network a run trains, with fresh weights drawn from torch's generator."""
    if role == "teacher":
        if recipe.teacher is None:
            raise UserError("the recipe has no [teacher] table, so it describes no teacher")
        wanted = recipe.teacher
        return networks.build(
            wanted.network,
            depth=wanted.depth,
            widen=wanted.widen,
            dropout=wanted.dropout,
            classes=n_classes,
        )
    planned = design(recipe, n_classes)
    assert recipe.student is not None
    return ResNet(
        planned,
        activation=recipe.student.activation,
        block_dropout=recipe.student.block_dropout,
        head_dropout=recipe.student.head_dropout,
    )


def network_name(recipe: Recipe, role: Role, n_classes: int) -> str:
    """Its name in a table: `WRN-28-10`, `ResNet [4, 4, 3] 64-128-256`."""
    if role == "teacher" and recipe.teacher is not None:
        wanted = recipe.teacher
        return networks.summary(wanted.network, depth=wanted.depth, widen=wanted.widen)
    return design(recipe, n_classes).summary


def trained(run: RunFolder) -> nn.Module:
    """A finished run's network with the weights to use, on the host, in eval mode."""
    recipe, result = recipes.read(run.recipe), run.result()
    net = network(recipe, run.role, len(result["class_names"]))
    checkpoint.load_weights(run.weights(run.role), net)
    return net.eval()


def needs_teacher(recipe: Recipe) -> bool:
    """Whether some term of the recipe asks a network."""
    return "live teacher" in recipes.needs(recipe)


def newest_teacher(images: ImageSet, split: Split, places: Iterable[Path]) -> RunFolder:
    """The newest finished teacher in `places` that may teach on these images. Raises UserError for none."""
    for place in places:
        for run in runs_in(place):
            if run.is_finished and run.role == "teacher" and not _teacher_faults(run, images, split):
                return run
    raise UserError(
        "the recipe needs a teacher, none was named, and no finished one for this data is in "
        + " or ".join(f"{place}/" for place in places)
        + ".\nTrain one: python cli.py train-teacher --recipe teacher_wrn --data …\n"
        "or name one:  --teacher RUN"
    )


def teacher(recipe: Recipe, images: ImageSet, split: Split) -> Frozen | None:
    """The teacher named by its run folders, several as an ensemble; None where no term needs one.

    Raises UserError where a folder is no finished run, has no weights, other classes, other data, or has
    trained on images that this run holds out; every faulty folder is named.
    """
    named = recipe.teacher.runs if recipe.teacher else ()
    if not needs_teacher(recipe):
        if named:
            raise UserError(
                f"--teacher {named[0]} was given, and no term of this recipe asks a teacher.\n"
                "Leave --teacher away, or choose a recipe with one, such as kd."
            )
        return None
    runs = [opened(path) for path in named]
    faults = [fault for run in runs for fault in _teacher_faults(run, images, split)]
    if faults:
        raise UserError("\n".join(faults))
    nets = [trained(run) for run in runs]
    return Frozen(nets[0] if len(nets) == 1 else Ensemble(nets))


def _teacher_faults(run: RunFolder, images: ImageSet, split: Split) -> list[str]:
    """Why this run cannot teach on these images, one line each."""
    retrain = "train one on this data with: python cli.py train-teacher --recipe teacher_wrn"
    if not run.weights(run.role).exists():
        return [f"teacher {run.path} has no {run.role}.safetensors: its training never finished; {retrain}"]
    result = run.result()
    theirs, ours = tuple(result["class_names"]), images.class_names
    if len(theirs) != len(ours):
        return [f"teacher {run.path} answers {len(theirs)} classes, the data has {len(ours)}; {retrain}"]
    if theirs != ours:
        pairs = [f"{a} / {b}" for a, b in zip(theirs, ours, strict=True) if a != b]
        return [f"teacher {run.path} names its classes otherwise ({', '.join(pairs[:3])}); {retrain}"]
    if result["data"]["fingerprint"] != images.fingerprint:
        return [
            f"teacher {run.path} was trained on other images (data fingerprint "
            f"{result['data']['fingerprint'][:12]}, this run's is {images.fingerprint[:12]}), so what it "
            f"has seen of the held-out part is unknown; {retrain}"
        ]
    n_seen = _seen_by(run, images, split)
    if n_seen:
        return [
            f"teacher {run.path} was trained on {n_seen} of the {len(split.held_out or ())} images this run "
            "holds out: its targets would know the answers that select the best epoch.\n"
            "  Use the teacher's data.holdout here (--set data.holdout=…), or another teacher"
        ]
    return []


def _seen_by(run: RunFolder, images: ImageSet, split: Split) -> int:
    """How many of this split's held-out images the teacher has trained on; its rule depends on data only."""
    if split.held_out is None:
        return 0
    theirs = divide(recipes.read(run.recipe), images).train
    return len(set(theirs.digests) & set(split.held_out.digests))


def objective(recipe: Recipe) -> Objective:
    """One loss a term, its arguments the term's own keys."""
    return Objective(
        {
            name: Weighted(term.weight, LOSSES[name](**term.model_dump(exclude={"weight"})))
            for name, term in recipe.loss.terms().items()
        }
    )


def loader(recipe: Recipe, images: ImageSet, accel: Accelerator) -> Loader:
    """Raises UserError where the batch does not divide, or is larger than the set."""
    parts = accel.num_processes * recipe.train.accumulate
    batch_size = recipe.train.batch_size
    if batch_size % parts:
        raise UserError(
            f"train.batch_size = {batch_size} is the global batch and must be divisible by processes x "
            f"accumulate = {accel.num_processes} x {recipe.train.accumulate}.\n"
            f"Type --set train.batch_size={-(-batch_size // parts) * parts}."
        )
    if batch_size > len(images.labels):
        raise UserError(
            f"train.batch_size = {batch_size} is more than the {len(images.labels)} training images.\n"
            f"Type --set train.batch_size={len(images.labels)} or less."
        )
    ops, mixing = recipe.augment, recipe.mix
    return Loader(
        images,
        batch_size=batch_size,
        seed=recipe.data.seed,
        crop=augment.Crop(ops.crop.padding) if ops.crop else None,
        flip=augment.Flip(ops.flip.prob) if ops.flip else None,
        mixup=mix.Mixup(mixing.mixup.prob, mixing.mixup.alpha) if mixing.mixup else None,
        cutmix=mix.Cutmix(mixing.cutmix.prob, mixing.cutmix.alpha) if mixing.cutmix else None,
        device=accel.device,
        part=Slice(accel.process_index, accel.num_processes, recipe.train.accumulate),
    )


def schedule(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """The recipe speaks epochs, the loop speaks steps."""
    return partial(
        optim.lr_at,
        total=recipe.train.epochs * steps_per_epoch,
        warmup=round(recipe.optim.warmup_epochs * steps_per_epoch),
        peak=recipe.optim.lr,
        schedule=recipe.optim.schedule,
    )


def teach(frozen: Frozen | None, accel: Accelerator) -> Teach:
    return nobody if frozen is None else Live(frozen, accel)


def training(
    recipe: Recipe,
    role: Role,
    split: Split,
    frozen: Frozen | None,
    folder: RunFolder,
    accel: Accelerator,
) -> Training:
    """All the parts of a run, at step 0."""
    batches = loader(recipe, split.train, accel)
    torch.manual_seed(recipe.train.seed)  # initial weights
    student = network(recipe, role, split.train.n_classes)
    student = student.to(accel.device).to(memory_format=torch.channels_last)
    ema = None
    if recipe.ema is not None:  # copied before accelerate wraps the forward
        ema = ModelEmaV3(
            student,
            decay=recipe.ema.decay,
            use_warmup=recipe.ema.warmup,
            warmup_gamma=9,
            warmup_power=1,
        )
    sgd = optim.optimizer(student, **recipe.optim.model_dump(include=OPTIMIZER_KEYS))
    net, optimizer = accel.prepare(student, sgd)
    if recipe.train.compile:
        net.compile()
    return Training(
        accelerator=accel,
        loader=batches,
        net=net,
        student=student,
        teach=teach(frozen, accel),
        objective=objective(recipe),
        optimizer=optimizer,
        lr=schedule(recipe, batches.steps_per_epoch),
        clip=recipe.optim.clip,
        ema=ema,
        held_out=split.held_out,
        seed=recipe.train.seed,
        epochs=recipe.train.epochs,
        log_every=recipe.train.log_every,
        save_every=recipe.train.save_every,
        folder=folder,
        identity=_identity(recipe, split),
    )


def _identity(recipe: Recipe, split: Split) -> dict[str, str]:
    """Fingerprints of the data and of the teachers' weights."""
    if not needs_teacher(recipe) or recipe.teacher is None:
        return {"data": split.fingerprint}
    runs = [RunFolder(Path(path)) for path in recipe.teacher.runs]
    weights = [checkpoint.fingerprint(run.weights(run.role)) for run in runs]
    return {"data": split.fingerprint, "teacher": "+".join(weights)}
