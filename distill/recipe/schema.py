"""The tables of a recipe: every key with its type, range and default.

A table is a frozen pydantic model. Types are strict, except that an integer is accepted for a
float; unknown keys are refused. A key that is None is absent, and what an absent table describes is
not used.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
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
from networks.network_catalogue import RESIDUAL, is_named, is_own, wide_resnet

DEFAULT_SIZE = 32  # height and width of images in pixels
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# A student's sizes are bounded so that the parameters of any student are counted within seconds.
Stages = Annotated[int, Field(ge=1, le=16)]
Blocks = Annotated[int, Field(ge=1, le=1_000)]  # of a stage
BlocksOrNone = Annotated[int, Field(ge=0, le=1_000)]
Kernel = Annotated[int, Field(ge=1, le=63)]  # 63 reaches from each pixel of 32x32 to all others
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
Milestones = Annotated[tuple[Epochs, ...], Field(strict=False, max_length=1_000)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0, le=1_000_000)], ...], Field(strict=False)]
Betas = Annotated[tuple[ShareBelowOne, ShareBelowOne], Field(strict=False)]
Side = Annotated[int, Field(ge=8, le=128, multiple_of=2)]  # height and width in pixels
Stage = Annotated[tuple[ShareBelowOne, Side], Field(strict=False)]  # fraction of the epochs, size
Resolution = Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
Mean = Annotated[float, Field(ge=-1_000, le=1_000)]  # of a channel of images in [0, 1]
Std = Annotated[float, Field(gt=0, le=1_000)]
ThreeMeans = Annotated[tuple[Mean, Mean, Mean], Field(strict=False)]  # red, green, blue
ThreeStds = Annotated[tuple[Std, Std, Std], Field(strict=False)]
MeanAndStd = Annotated[tuple[ThreeMeans, ThreeStds], Field(strict=False)]
Space = Literal["standard", "wide"]
OptimizerName = Literal[
    "sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
    "rmsprop", "lamb", "lars", "lion", "muon", "adan", "adopt", "adafactor",
]  # fmt: skip


class About(Table):
    """What the recipe claims, how to reproduce it and what that costs; not in the fingerprint."""

    claim: str = ""
    command: str = ""
    teacher: str = ""
    hardware: str = ""
    minutes: str = ""
    accuracy: str = ""  # mean ± std over n seeds, or "not yet run"
    # Mean accuracy on CIFAR-10's test split of `seeds` runs of `command`, in %; absent if not run.
    measured_accuracy: Annotated[float, Field(gt=0, le=100)] | None = None
    seeds: Count | None = None


class Data(Table):
    """The images, and which of them are held out for selection."""

    source: str = "cifar10"  # synthetic, cifar10, cifar100 or a path
    seed: Seed = 0  # order, augmentation and mixing
    holdout: ShareBelowOne = 0.1  # fraction of the training images
    # Height and width in pixels, to which all images are resized. Absent: images of class folders
    # keep their size, which the program sets in the recipe.toml of a run unless it is 32.
    size: Annotated[int, Field(ge=16, le=128)] | None = None
    train_images: Count | None = None  # only this many of the training images, class by class
    # The mean and std by which the trained network normalises images in [0, 1]: published ones, or
    # "computed" from the whole train split, or [[red, green, blue], [red, green, blue]]. Absent: by
    # data set, CIFAR-10's for CIFAR-10 and synthetic, CIFAR-100's, computed for all others. In the
    # recipe.toml of a run the program sets it, unless it is CIFAR-10's by default.
    normalize: Literal["cifar10", "cifar100", "computed"] | MeanAndStd | None = None

    @property
    def image_size(self) -> int:
        """Height and width of a run's images in pixels."""
        return self.size or DEFAULT_SIZE


class Crop(Table):
    """A random crop out of the padded image."""

    padding: Annotated[int, Field(ge=1, le=16)] = 4  # pixels on each side


class Flip(Table):
    """A mirror image, left to right."""

    prob: Share = 0.5
    alternate: bool = False  # drawn once per image, which is then mirrored every other epoch


class Translate(Table):
    """A shift by whole pixels, filled with black."""

    pixels: Annotated[int, Field(ge=1, le=16)] = 4  # at most, on each axis


class Affine(Table):
    """Rotation, shift, scale and shear in one resampling."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0  # at most, either way
    translate: ShareBelowOne = 0.0  # at most, as a fraction of the image size
    scale: Ratios = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0  # degrees, at most


class Rotate(Table):
    """A rotation about the centre."""

    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0  # at most, either way


class Jitter(Table):
    """Random brightness, contrast, saturation and hue."""

    brightness: Spread = 0.0  # b: a factor in [1 - b, 1 + b]; likewise contrast and saturation
    contrast: Spread = 0.0
    saturation: Spread = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # at most, in turns of the colour circle


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

    size: Annotated[int, Field(ge=1, le=1_000)] = 16  # height and width in pixels
    prob: Share = 1.0


class Erase(Table):
    """Hide a rectangle, arXiv 1708.04896."""

    prob: Share = 0.25
    area: Areas = (0.02, 0.33)  # fractions of the image's area
    ratio: Ratios = (0.3, 3.3)  # height over width


class Augment(Table):
    """Augmentations of one image, in this order; `trivial` comes first with `before_crop`."""

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
    # In this fraction of the epochs, at the end, only crop and flip; above 0 at least one epoch.
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
    # In this fraction of the epochs, at the end, no mixing; above 0 at least one epoch.
    off_last: ShareBelowOne = 0.0

    def ways(self) -> dict[str, Mixup | Cutmix | Ricap]:
        """Return the ways of mixing that are on, by name."""
        return {name: way for name, way in self if isinstance(way, Mixup | Cutmix | Ricap)}


Plain = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


class Arguments(BaseModel):
    """Arguments of the user's own network: any keys with plain values or lists of them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Plain] = Field(init=False)


class ResNetKeys(Table):
    """Keys of a residual network: the arguments of `Design.of`, and its activation, dropout rates
    and batch-norm momentum.
    """

    network: str = "resnet"  # with the keys below; or "timm/NAME", or a name in docs/networks.md
    stages: Stages | None = None
    blocks: Blocks | BlocksEach | None = None  # with downsample "pool" a stage may have 0
    # Either `width`, the channels of the first stage, doubled in each later one, or `channels`.
    width: Channels | None = None
    channels: ChannelsEach | None = None
    kernel: Kernel | KernelEach = 3
    skip_kernel: Kernel | KernelEach = 1
    stem_kernel: Kernel | None = None  # the first stage's kernel; odd, or 2, without padding
    stem_width: Channels | None = None  # the first stage's channels; with stem_init "whiten" 6 k²
    stem_stride: Stride = 1
    stem_pool: bool = False
    stem_init: Literal["random", "whiten"] = "random"  # whiten: from patches of training images
    stem_frozen: bool = False  # its kernels are not trained; they count as parameters
    stem_norm: bool = True  # batch norm after its convolution, else a bias
    # Each stage begins with a strided block, or with a max pool.
    downsample: Literal["stride", "pool"] = "stride"
    stage_strides: StrideEach | None = (
        None  # 1, 2, 2, ...; with downsample "pool" the window sizes of the pools, 2, 2, 2, ...
    )
    convs_per_block: Annotated[int, Field(ge=1, le=16)] = 2
    pool: Literal["global"] | Annotated[int, Field(ge=1, le=1_000)] = "global"  # or its window size
    # celu: with alpha = 0.075, as in David Page's networks for CIFAR-10
    activation: Literal["relu", "leaky_relu", "gelu", "tanh", "celu", "silu"] = "relu"
    # frozen: always 1, also in the last norm of a block, which otherwise begins at 0
    norm_scale: Literal["trained", "frozen"] = "trained"
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = (
        0.1  # by torch's definition, by which airbench94's 0.6 is 0.4
    )
    block_dropout: ShareBelowOne = 0.0
    head_dropout: ShareBelowOne = 0.0
    zero_gamma: bool = True  # the scale of each block's last norm begins at 0 instead of 1
    args: Arguments = Arguments()  # of a network of the user's own code
    normalize: bool = False  # whether such a network receives normalised images
    code: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None  # sha256, set by the program

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
OWN_KEYS = frozenset({"args", "normalize", "code"})  # of a network of the user's own code
RESNET_KEYS = frozenset(ResNetKeys.model_fields) - {"network"} - OWN_KEYS
DESIGN_KEYS = {*RESNET_KEYS, "projector_width", "projector_factor"} - NOT_IN_DESIGN
WRN_KEYS = frozenset({"depth", "widen", "dropout"})


def foreign_keys(network: str) -> frozenset[str]:
    """Return the keys of [student] and [teacher] that are not allowed with this network.

    A network of timm uses no key, but the keys of a Wide ResNet are allowed with it and written to
    recipes, as earlier versions did.
    """
    if is_own(network):
        return RESNET_KEYS | WRN_KEYS
    if network == "resnet":
        return WRN_KEYS | OWN_KEYS
    if wide_resnet(network) is not None:
        return OWN_KEYS | RESNET_KEYS | WRN_KEYS - {"dropout"}
    return OWN_KEYS | RESNET_KEYS | (WRN_KEYS if is_named(network) else set())


class Teacher(ResNetKeys):
    """The teacher's network, and the run folders of trained teachers.

    Keys that describe another network than `network` are neither written to recipes nor part of
    the fingerprint.
    """

    network: str = "wrn"  # or "resnet", with the keys of a student's network, or a name
    depth: Annotated[int, Field(ge=1, le=2_000)] = 28
    widen: Annotated[int, Field(ge=1, le=1_000)] = 10
    dropout: ShareBelowOne = 0.0
    runs: Names = ()  # folders of trained teachers; several are an ensemble
    draw: Literal["all", "one"] = "all"  # the ensemble's mean, or one random teacher for each view
    mirror: bool = False  # average over each image and its mirror image: twice the forward passes
    weights: Weights = ()  # one per teacher, in the mean or the random draw; equal by default


class Student(ResNetKeys):
    """The student's network."""

    # Output channels of SimKD's projector: as many as the teacher's classifier has inputs.
    projector_width: Channels | None = None
    projector_factor: Channels = 2  # the projector's inner maps have fewer channels by this factor
    max_params: Annotated[int, Field(ge=1, le=MOST * 1_000)] = (
        5_000_000  # the student has strictly fewer
    )


class Optim(Table):
    """The optimizer, by timm's names: `sgd` is Nesterov's, `momentum` the plain one."""

    name: OptimizerName = "sgd"
    lr: Rate = 0.1  # the peak
    bias_lr: Annotated[float, Field(ge=0.001, le=10_000)] = (
        1.0  # factor on lr for the biases of norms, and for the bias of a stem without norm
    )
    min_lr: Annotated[float, Field(ge=0, le=1e30)] = (
        0.0  # the lowest rate after the peak; a retry multiplies it by retry_lr like all rates
    )
    momentum: ShareBelowOne = 0.9
    betas: Betas | None = None
    eps: Positive | None = None
    weight_decay: NotNegative = 5e-4
    decay_norm: bool = True  # whether norms and biases have weight decay
    schedule: Literal["cosine", "linear", "constant", "step", "milestones", "one_cycle"] = "cosine"
    # Schedule "step": every `step_epochs` epochs the learning rate is multiplied by `gamma`;
    # schedule "milestones": after each of these numbers of epochs, [150, 180, 210] for example.
    step_epochs: Epochs = 10
    milestones: Milestones = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    warmup_epochs: NotNegative = 0.0
    clip: Positive | None = None  # the largest norm of the gradient


# Marks the keys of [train] that may be changed when a run is resumed: how often it logs and saves,
# what it validates, and whether it retries after diverging. They do not distinguish trainings.
MAY_CHANGE = "may change"


class Train(Table):
    """Length, batch size, precision, saving and retries of the training."""

    epochs: Epochs | None = None  # either this or minutes
    minutes: Positive | None = None  # of training: the first steps are timed to plan how many fit
    # Size of the training images in pixels, [[fraction of the epochs, size], ...]; absent: full.
    resolution: Resolution | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = (
        512  # images in one optimizer step, over all processes and accumulated batches
    )
    # Whether to leave out the last batch of an epoch if it has fewer images than `batch_size`.
    drop_last: bool = True
    seed: Seed = 0  # initial weights and dropout
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # auto: on a GPU, if a measured step is faster
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    sync_batch_norm: bool = False  # mean and variance over all GPUs, not per GPU
    log_every: Annotated[Count, MAY_CHANGE] = 50  # steps
    # A checkpoint is saved after this many epochs, and also after this many steps or minutes.
    save_every: Annotated[Count, MAY_CHANGE] = 1
    save_steps: Annotated[Count | None, MAY_CHANGE] = None
    save_minutes: Annotated[Positive | None, MAY_CHANGE] = 10.0
    # Save the weights after every this many epochs, and after the last one.
    keep_epochs: Annotated[Count | None, MAY_CHANGE] = None
    # With [ema], validate the trained weights too, not only their average.
    validate_both: Annotated[bool, MAY_CHANGE] = False
    # How often to go back to the last checkpoint if the loss diverges, and the factor on the
    # learning rate each time.
    retries: Annotated[int, Field(ge=0, le=1_000), MAY_CHANGE] = 0
    retry_lr: Annotated[float, Field(gt=0, lt=1), MAY_CHANGE] = 0.5


LOGGING_AND_SAVING = frozenset(
    name for name, field in Train.model_fields.items() if MAY_CHANGE in field.metadata
)


class Ema(Table):
    """An exponential moving average of the weights, with a decay per step or a half-life."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999  # per step; either this or half_life
    half_life: Annotated[float, Field(ge=0.001, le=MOST)] | None = (
        None  # in epochs: decay = 0.5 ** (1 / (half_life * steps per epoch))
    )
    warmup: bool = True  # the decay at step t is min(decay, (1 + t) / (10 + t))
    # Running statistics of batch norms: averaged like the weights, or re-estimated for the averaged
    # weights after each epoch.
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
