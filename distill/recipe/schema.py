"""The tables of a recipe: every key with its type, range and default.

A table is a frozen pydantic model: strict types (an integer is accepted for a float), unknown
keys refused. `None` is an absent key; an absent table is off.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from distill.recipe.loss_schema import (
    MOST,
    Channels,
    Count,
    Losses,
    Names,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    Table,
)
from networks.catalogue import RESIDUAL, is_named, wide_resnet

Seed = Annotated[int, Field(ge=0, lt=2**32)]
# The sizes of a student are bounded so that even the largest is counted within seconds.
Stages = Annotated[int, Field(ge=1, le=16)]
Blocks = Annotated[int, Field(ge=1, le=1_000)]  # of a stage
BlocksOrNone = Annotated[int, Field(ge=0, le=1_000)]
Kernel = Annotated[int, Field(ge=1, le=63)]  # 63: each pixel of 32x32 sees all others
Stride = Annotated[int, Field(ge=1, le=32)]
ChannelsEach = Annotated[tuple[Channels, ...], Field(strict=False)]
KernelEach = Annotated[tuple[Kernel, ...], Field(strict=False)]
StrideEach = Annotated[tuple[Stride, ...], Field(strict=False)]
BlocksEach = Annotated[tuple[BlocksOrNone, ...], Field(strict=False)]
Ratio = Annotated[float, Field(ge=0.001, le=1_000)]
Area = Annotated[float, Field(gt=0, le=1)]
Spread = Annotated[float, Field(ge=0, le=100)]
Ratios = Annotated[tuple[Ratio, Ratio], Field(strict=False)]  # from, to
Areas = Annotated[tuple[Area, Area], Field(strict=False)]  # from, to
Concentration = Annotated[
    float, Field(ge=0.01, le=100)
]  # parameter of a symmetric beta distribution
Rate = Annotated[float, Field(gt=0, le=1e30)]  # its product with bias_lr still fits float32
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0, le=1_000_000)], ...], Field(strict=False)]
Betas = Annotated[tuple[ShareBelowOne, ShareBelowOne], Field(strict=False)]
Side = Annotated[int, Field(ge=8, le=32, multiple_of=2)]  # pixels; the images have 32
Stage = Annotated[tuple[ShareBelowOne, Side], Field(strict=False)]  # share at which it begins, side
Resolution = Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
Space = Literal["standard", "wide"]
OptimizerName = Literal[
    "sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
    "rmsprop", "lamb", "lars", "lion", "muon", "adan", "adopt", "adafactor",
]  # fmt: skip


class About(Table):
    """The [about] table: a claim, how to reproduce it, its cost. Not part of the fingerprint."""

    claim: str = ""
    command: str = ""
    teacher: str = ""
    hardware: str = ""
    minutes: str = ""
    accuracy: str = ""  # mean ± std over n seeds, or "not yet run"
    # Of `command` on CIFAR-10's test split, in %; absent if it has not been run. The mean …
    measured_accuracy: Annotated[float, Field(gt=0, le=100)] | None = None
    seeds: Count | None = None  # … over this many runs


class Data(Table):
    """The images, and which of them are held out for selection."""

    source: str = "cifar10"  # synthetic, cifar10, cifar100 or a path
    seed: Seed = 0  # order, augmentation and mixing
    holdout: ShareBelowOne = 0.1
    train_images: Count | None = None  # only this many of the training images, class by class


class Crop(Table):
    """A random crop out of the padded image."""

    padding: Annotated[int, Field(ge=1, le=16)] = 4  # pixels on each side


class Flip(Table):
    """A mirror image, left to right."""

    prob: Share = 0.5
    alternate: bool = False  # drawn once, then mirrored every other epoch


class Translate(Table):
    """A shift by whole pixels, filled with black."""

    pixels: Annotated[int, Field(ge=1, le=16)] = 4  # at most, on each axis


class Affine(Table):
    """Rotation, shift, scale and shear in one resampling."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0  # at most, either way
    translate: ShareBelowOne = 0.0  # of the side, at most
    scale: Ratios = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0  # degrees, at most


class Rotate(Table):
    """A rotation about the centre."""

    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0  # at most, either way


class Jitter(Table):
    """Random brightness, contrast, saturation and hue."""

    brightness: Spread = 0.0  # a factor in [1 - b, 1 + b]; the next two alike
    contrast: Spread = 0.0
    saturation: Spread = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # a share of the colour circle


class Trivial(Table):
    """TrivialAugment, arXiv 2103.10158: one operation at a random strength."""

    space: Space = "standard"
    before_crop: bool = True  # on whole images, before crop and flip, as in the authors' code


class Rand(Table):
    """RandAugment, arXiv 1909.13719: several operations at one strength."""

    ops: Annotated[int, Field(ge=1, le=4)] = 3
    magnitude: Annotated[int, Field(ge=0, le=30)] = 15
    space: Space = "standard"


class Cutout(Table):
    """Hide a square, arXiv 1708.04552."""

    size: Annotated[int, Field(ge=1, le=1_000)] = 16  # its side in pixels
    prob: Share = 1.0


class Erase(Table):
    """Hide a rectangle, arXiv 1708.04896."""

    prob: Share = 0.25
    area: Areas = (0.02, 0.33)  # shares of the image
    ratio: Ratios = (0.3, 3.3)  # height over width


class Augment(Table):
    """Augmentations of one image, in this order; `trivial` is first if `before_crop`."""

    crop: Crop | None = None
    flip: Flip | None = None
    translate: Translate | None = None
    affine: Affine | None = None
    rotate: Rotate | None = None
    trivial: Trivial | None = None
    rand: Rand | None = None
    jitter: Jitter | None = None
    cutout: Cutout | None = None
    erase: Erase | None = None
    # Share of the epochs, at the end, with crop and flip only; above 0 at least one epoch.
    off_last: ShareBelowOne = 0.0


class Mixup(Table):
    """Blending two images; lambda ~ Beta(alpha, alpha)."""

    prob: Share = 1.0
    alpha: Concentration = 1.0


class Cutmix(Table):
    """A box of one image pasted into another; area from Beta(alpha, alpha)."""

    prob: Share = 1.0
    alpha: Concentration = 1.0


class Ricap(Table):
    """Four images in one, arXiv 1811.09030; boundary from Beta(beta, beta)."""

    prob: Share = 1.0
    beta: Concentration = 0.3


class Mix(Table):
    """Mixing of images; each sample is mixed in at most one way."""

    mixup: Mixup | None = None
    cutmix: Cutmix | None = None
    ricap: Ricap | None = None
    # Share of the epochs, at the end, without mixing; above 0 at least one epoch.
    off_last: ShareBelowOne = 0.0

    def ways(self) -> dict[str, Mixup | Cutmix | Ricap]:
        """Return the ways of mixing that are on, by name."""
        return {name: way for name, way in self if isinstance(way, Mixup | Cutmix | Ricap)}


class ResNetKeys(Table):
    """A residual network: the arguments of `Design.of`, activation, dropout and norm momentum."""

    network: str = "resnet"  # described by the keys below, or a name of networks/catalogue.py
    stages: Stages | None = None
    blocks: Blocks | BlocksEach | None = None  # with downsample "pool" a stage may have 0
    width: Channels | None = None  # of the first stage, doubling; either this or channels
    channels: ChannelsEach | None = None
    kernel: Kernel | KernelEach = 3
    skip_kernel: Kernel | KernelEach = 1
    stem_kernel: Kernel | None = None  # the first stage's kernel; odd, or 2, without padding
    stem_width: Channels | None = None  # the first stage's channels; 6 k² filters if whitened
    stem_stride: Stride = 1
    stem_pool: bool = False
    stem_init: Literal["random", "whiten"] = "random"  # whiten: from patches of training images
    stem_frozen: bool = False  # its kernels are not trained; they count as parameters
    stem_norm: bool = True  # batch norm after its convolution, else a bias
    downsample: Literal["stride", "pool"] = "stride"  # of a stage's first block, or a max pool
    stage_strides: StrideEach | None = (
        None  # 1, 2, 2, ...; with "pool" the pools' sides, 2, 2, 2, ...
    )
    convs_per_block: Annotated[int, Field(ge=1, le=16)] = 2
    pool: Literal["global"] | Annotated[int, Field(ge=1, le=1_000)] = "global"
    # celu: with alpha 0.075, Page's for CIFAR-10
    activation: Literal["relu", "leaky_relu", "gelu", "tanh", "celu", "silu"] = "relu"
    norm_scale: Literal["trained", "frozen"] = "trained"  # frozen: 1, at the ends of blocks too
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = (
        0.1  # torch's; airbench94's 0.6 is 0.4 here
    )
    block_dropout: ShareBelowOne = 0.0
    head_dropout: ShareBelowOne = 0.0
    zero_gamma: bool = True  # the scale of each block's last norm begins at 0 instead of 1

    def spec(self) -> dict[str, Any]:
        """Return the keyword arguments of `Design.of`, if the network is residual."""
        return self.model_dump(mode="json", include=DESIGN_KEYS) | RESIDUAL.get(self.network, {})

    def rates(self) -> dict[str, Any]:
        """Return the keyword arguments of `students.resnet.ResNet` other than the design.

        A named network begins with all scales at 1, as published.
        """
        values = {name: getattr(self, name) for name in NOT_IN_DESIGN}
        return values | ({"zero_gamma": False} if self.network in RESIDUAL else {})

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = written(self)
        present = [key for key in values if key not in foreign_keys(self.network)]
        return {key: values[key] for key in sorted(present, key=lambda key: key != "network")}


NOT_IN_DESIGN = {"activation", "norm_momentum", "block_dropout", "head_dropout", "zero_gamma"}
RESNET_KEYS = frozenset(ResNetKeys.model_fields) - {"network"}
DESIGN_KEYS = {*RESNET_KEYS, "projector_width", "projector_factor"} - NOT_IN_DESIGN
WRN_KEYS = frozenset({"depth", "widen", "dropout"})


def foreign_keys(network: str) -> frozenset[str]:
    """Return the keys of [student] and [teacher] that do not apply to this network.

    For timm's networks none apply; a Wide ResNet's keys are still written to recipes, as by older
    versions.
    """
    if network == "resnet":
        return WRN_KEYS
    if wide_resnet(network) is not None:
        return RESNET_KEYS | WRN_KEYS - {"dropout"}
    return RESNET_KEYS | WRN_KEYS if is_named(network) else RESNET_KEYS


class Teacher(ResNetKeys):
    """The teacher's network, and the run folders of trained teachers.

    Keys that describe another network are neither written to recipes nor fingerprinted.
    """

    network: str = "wrn"  # also "resnet", described as a student is, or a name as in [student]
    depth: Annotated[int, Field(ge=1, le=2_000)] = 28
    widen: Annotated[int, Field(ge=1, le=1_000)] = 10
    dropout: ShareBelowOne = 0.0
    runs: Names = ()  # folders of trained teachers; several are an ensemble
    draw: Literal["all", "one"] = "all"  # their mean, or one of them for each view
    mirror: bool = False  # average over each image and its mirror image: twice the forward passes
    weights: Weights = ()  # one per teacher, in the mean or in the draw; equal by default


class Student(ResNetKeys):
    """The student's network."""

    projector_width: Channels | None = None  # SimKD's: the teacher's width, before its classifier
    projector_factor: Channels = 2  # the projector's inner maps are narrower by this factor
    max_params: Annotated[int, Field(ge=1, le=MOST * 1_000)] = (
        5_000_000  # the student has strictly fewer
    )


class Optim(Table):
    """The optimizer, by timm's names: `sgd` is Nesterov's, `momentum` the plain one."""

    name: OptimizerName = "sgd"
    lr: Rate = 0.1  # the peak
    bias_lr: Annotated[float, Field(ge=0.001, le=10_000)] = (
        1.0  # factor on lr for biases of norms, and of a stem without norm
    )
    min_lr: Annotated[float, Field(ge=0, le=1e30)] = (
        0.0  # the lowest rate after the peak; retries lower it like every rate
    )
    momentum: ShareBelowOne = 0.9
    betas: Betas | None = None
    eps: Positive | None = None
    weight_decay: NotNegative = 5e-4
    decay_norm: bool = True
    schedule: Literal["cosine", "linear", "constant", "step", "one_cycle"] = "cosine"
    step_epochs: Epochs = 10  # of `step`: every so many epochs …
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9  # … times this
    warmup_epochs: NotNegative = 0.0
    clip: Positive | None = None  # the largest norm of the gradient


# Marks the keys of [train] that a resumed run may change, and that are in no fingerprint: how often
# it logs and saves, what it validates, and whether it retries after diverging.
MAY_CHANGE = "may change"


class Train(Table):
    """Length, batch size, precision, saving and retries of the training."""

    epochs: Epochs | None = None  # either this or minutes
    minutes: Positive | None = None  # of training: the first steps are timed to plan how many fit
    # Of the training images only, [[share of the epochs, side], ...]; absent: always 32.
    resolution: Resolution | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = (
        512  # of one optimizer step, over all processes and accumulation
    )
    seed: Seed = 0  # initial weights and dropout
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # auto: on a GPU, if a measured step is faster
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    sync_batch_norm: bool = False  # mean and variance over all GPUs, not per GPU
    log_every: Annotated[Count, MAY_CHANGE] = 50  # steps
    save_every: Annotated[Count, MAY_CHANGE] = 1  # epochs; and in the middle of one …
    save_steps: Annotated[Count | None, MAY_CHANGE] = None  # … every this many steps
    save_minutes: Annotated[Positive | None, MAY_CHANGE] = 10.0  # … and after this many minutes
    # Save the weights every this many epochs, and after the last.
    keep_epochs: Annotated[Count | None, MAY_CHANGE] = None
    # With [ema], validate the network too, not only its average; no effect without.
    validate_both: Annotated[bool, MAY_CHANGE] = False
    # If the loss diverges, go back to the last checkpoint …
    retries: Annotated[int, Field(ge=0, le=1_000), MAY_CHANGE] = 0
    # … with the learning rate times this.
    retry_lr: Annotated[float, Field(gt=0, lt=1), MAY_CHANGE] = 0.5


LOGGING_AND_SAVING = frozenset(
    name for name, field in Train.model_fields.items() if MAY_CHANGE in field.metadata
)


class Ema(Table):
    """An exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999  # per step; either this or half_life
    half_life: Annotated[float, Field(ge=0.001, le=MOST)] | None = (
        None  # epochs: decay = 0.5 ** (1 / (half_life * steps an epoch))
    )
    warmup: bool = True  # min(decay, (1 + t) / (10 + t))
    # Of batch norms: averaged like the weights, or re-estimated for them after each epoch.
    norm_statistics: Literal["averaged", "re-estimated"] = "averaged"

    @model_validator(mode="before")
    @classmethod
    def _without_default_decay(cls, values: Any) -> Any:
        """Drop the default decay if a half-life is set."""
        has_half_life = isinstance(values, dict) and values.get("half_life") is not None
        return {"decay": None} | values if has_half_life else values


class Cache(Table):
    """The cache of teacher logits, stored by view."""

    views: Epochs | None = None  # epoch e trains on view e mod views; by default on view e


class Recipe(Table):
    """A complete, resolved recipe, which `distill.recipe.recipes` builds from files and options."""

    about: About = About()
    data: Data = Data()
    augment: Augment = Augment()
    mix: Mix = Mix()
    teacher: Teacher | None = None
    student: Student | None = None
    loss: Losses = Losses()
    optim: Optim = Optim()
    train: Train
    ema: Ema | None = None
    cache: Cache | None = None
