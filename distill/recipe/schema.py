"""The tables of a recipe: every key with its type, range, default and meaning.

A table is a frozen pydantic model. Types are strict, except that an integer is accepted for a
float; unknown keys are refused. A key that is None is absent, and what an absent table describes is
not used. The docstring below a key is its description in docs/recipes.md and in the JSON schema.
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
EpochsOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
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
STUDENT_READS = {
    "runs",
    "draw",
    "mirror",
    "weights",
}  # keys of [teacher] that distill reads
OptimizerName = Literal[
    "sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
    "rmsprop", "lamb", "lars", "lion", "muon", "adan", "adopt", "adafactor",
]  # fmt: skip


class About(Table):
    """What the recipe claims, how to reproduce it and what that costs; not in the fingerprint."""

    claim: str = ""
    """What the recipe is for, in one sentence."""
    command: str = ""
    """The command that trains it."""
    teacher: str = ""
    """The recipe of its teacher and further options, as typed after `train-teacher --recipe`."""
    hardware: str = ""
    """The machine that `minutes` and `accuracy` were measured on."""
    minutes: str = ""
    """The training time in minutes, or "not yet run"."""
    accuracy: str = ""
    """The test accuracy, mean ± standard deviation over seeds, or "not yet run"."""
    measured_accuracy: Annotated[float, Field(gt=0, le=100)] | None = None
    """The mean accuracy of `seeds` runs of `command` on CIFAR-10's test split, in %."""
    seeds: Count | None = None
    """The number of runs that `measured_accuracy` is the mean of."""
    control: str | None = None
    """The command that trains its control, the same student without a teacher, if that was run."""
    control_accuracy: Annotated[float, Field(gt=0, le=100)] | None = None
    """The mean accuracy of `seeds` runs of `control` on CIFAR-10's test split, in %."""


class Data(Table):
    """The images, and which of them are held out for selection."""

    source: str = "cifar10"
    """The data set: `synthetic`, `cifar10`, `cifar100` or a path."""
    seed: Seed = 0
    """The seed of the images' order, augmentation and mixing."""
    holdout: ShareBelowOne = 0.1
    """The fraction of the training images that is held out to select the best epoch; 0: none."""
    size: Annotated[int, Field(ge=16, le=128)] | None = None
    """The height and width in pixels to which all images are resized; absent: images of class
    folders keep their size, which a run writes to its recipe.toml unless it is 32.
    """
    train_images: Count | None = None
    """Train on only this many of the training images, equally many of each class."""
    normalize: Literal["cifar10", "cifar100", "computed"] | MeanAndStd | None = None
    """The mean and std by which the trained network normalises images in [0, 1]: published ones,
    or `computed` from the whole train split, or [[red, green, blue], [red, green, blue]]; absent:
    by data set. A run writes them to its recipe.toml, unless they are CIFAR-10's by default.
    """

    @property
    def image_size(self) -> int:
        """Height and width of a run's images in pixels."""
        return self.size or DEFAULT_SIZE


class Crop(Table):
    """A random crop out of the padded image."""

    padding: Annotated[int, Field(ge=1, le=16)] = 4
    """The border on each side in pixels, filled by reflection."""


class Flip(Table):
    """A mirror image, left to right."""

    prob: Share = 0.5
    """The fraction of the images that is mirrored."""
    alternate: bool = False
    """Draw once per image, which is then mirrored every other epoch."""


class Translate(Table):
    """A shift by whole pixels, filled with black."""

    pixels: Annotated[int, Field(ge=1, le=16)] = 4
    """The largest shift on each axis in pixels."""


class Affine(Table):
    """Rotation, shift, scale and shear in one resampling."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """The largest rotation in either direction, in degrees."""
    translate: ShareBelowOne = 0.0
    """The largest shift on each axis, as a fraction of the image size."""
    scale: Ratios = (1.0, 1.0)
    """The smallest and the largest factor on the size of the content."""
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    """The largest shear in either direction, in degrees."""


class Rotate(Table):
    """A rotation about the centre."""

    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """The largest rotation in either direction, in degrees."""


class Jitter(Table):
    """Random brightness, contrast, saturation and hue."""

    brightness: Spread = 0.0
    """The brightness is multiplied by a factor between 1 - b and 1 + b, at least 0, for b."""
    contrast: Spread = 0.0
    """The contrast is multiplied by a factor between 1 - c and 1 + c, at least 0, for c."""
    saturation: Spread = 0.0
    """The saturation is multiplied by a factor between 1 - s and 1 + s, at least 0, for s."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The largest change of hue in either direction, in turns of the colour circle."""


class Trivial(Table):
    """TrivialAugment, arXiv 2103.10158: one operation at a random strength."""

    space: Space = "standard"
    """The strengths: those that the authors recommend for small networks, or the wider ones of
    torchvision.
    """
    before_crop: bool = True
    """Apply it to whole images, before crop and flip, as in the authors' code."""


class Rand(Table):
    """RandAugment, arXiv 1909.13719: several operations at one strength."""

    ops: Annotated[int, Field(ge=1, le=4)] = 3
    """The number of operations on one image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 15
    """The strength of every operation; 30 is the strongest."""
    space: Space = "standard"
    """The strengths: those of torchvision's RandAugment, or of its TrivialAugmentWide."""


class Cutout(Table):
    """Hide a square, arXiv 1708.04552."""

    size: Annotated[int, Field(ge=1, le=1_000)] = 16
    """The square's height and width in pixels; parts outside the image are cut off."""
    prob: Share = 1.0
    """The fraction of the images with a hidden square."""


class Erase(Table):
    """Hide a rectangle, arXiv 1708.04896."""

    prob: Share = 0.25
    """The fraction of the images with a hidden rectangle."""
    area: Areas = (0.02, 0.33)
    """The smallest and the largest area, as fractions of the image's area."""
    ratio: Ratios = (0.3, 3.3)
    """The smallest and the largest ratio of height to width."""


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
    off_last: ShareBelowOne = 0.0
    """In the last part of the training, this fraction of its epochs, images are only cropped and
    flipped; at least one epoch if above 0.
    """


class Mixup(Table):
    """Blending two images; lambda ~ Beta(alpha, alpha)."""

    prob: Share = 1.0
    """The fraction of the images that is mixed in this way."""
    alpha: Concentration = 1.0
    """The parameter of the beta distribution; 1 is uniform, small values mix few images evenly."""


class Cutmix(Table):
    """A box of one image pasted into another; area from Beta(alpha, alpha)."""

    prob: Share = 1.0
    """The fraction of the images that is mixed in this way."""
    alpha: Concentration = 1.0
    """The parameter of the beta distribution; 1 is uniform, small values mix few images evenly."""


class Ricap(Table):
    """Four images in one, arXiv 1811.09030; boundary from Beta(beta, beta)."""

    prob: Share = 1.0
    """The fraction of the images that is mixed in this way."""
    beta: Concentration = 0.3
    """The parameter of the beta distribution; small values let one of the four dominate."""


class Mix(Table):
    """Mixing of images; each sample is mixed in at most one way."""

    mixup: Mixup | None = None
    cutmix: Cutmix | None = None
    ricap: Ricap | None = None
    off_last: ShareBelowOne = 0.0
    """In the last part of the training, this fraction of its epochs, no images are mixed; at least
    one epoch if above 0.
    """

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

    network: str = "resnet"
    """The network: `resnet` with the keys below, `timm/NAME`, a name of
    docs/networks.md, or `FILE.py:NAME` of your own.
    """
    stages: Stages | None = None
    """The number of stages; each begins by halving the maps, except the first one."""
    blocks: Blocks | BlocksEach | None = None
    """The number of residual blocks of every stage, or a list of one number per stage; 0 is allowed
    with `downsample = "pool"` only.
    """
    width: Channels | None = None
    """The channels of the first stage, doubled in each later one; either this or `channels`."""
    channels: ChannelsEach | None = None
    """The channels of each stage; either this or `width`."""
    kernel: Kernel | KernelEach = 3
    """The kernel size of the blocks' convolutions; odd; one for all stages or one per stage."""
    skip_kernel: Kernel | KernelEach = 1
    """The kernel size of the convolutions on skips; odd; one for all stages or one per stage."""
    stem_kernel: Kernel | None = None
    """The kernel size of the first convolution: odd, or 2, without padding; by default that of the
    first stage.
    """
    stem_width: Channels | None = None
    """The channels after the first convolution: by default those of the first stage, and with
    `stem_init = "whiten"` 6 k² for a kernel of k x k.
    """
    stem_stride: Stride = 1
    """The stride of the first convolution."""
    stem_pool: bool = False
    """Whether a max pool with stride 2 follows the first convolution."""
    stem_init: Literal["random", "whiten"] = "random"
    """How the first convolution is initialised; `whiten`: from patches of the training images."""
    stem_frozen: bool = False
    """Do not train the kernels of the first convolution; they count as parameters."""
    stem_norm: bool = True
    """Whether a batch norm follows the first convolution; otherwise it has a bias."""
    downsample: Literal["stride", "pool"] = "stride"
    """How a stage halves its maps: by a strided block, or by a max pool after a convolution."""
    stage_strides: StrideEach | None = None
    """The stride of each stage, by default 1, 2, 2, …; with `downsample = "pool"` the window sizes
    of the pools, by default 2, 2, 2, …
    """
    convs_per_block: Annotated[int, Field(ge=1, le=16)] = 2
    """The number of convolutions in a block."""
    pool: Literal["global"] | Annotated[int, Field(ge=1, le=1_000)] = "global"
    """The average pool before the classifier: `global`, or the size of its window in pixels."""
    activation: Literal["relu", "leaky_relu", "gelu", "tanh", "celu", "silu"] = "relu"
    """The activation function; `celu` has alpha = 0.075, as in D. Page's networks for CIFAR-10."""
    norm_scale: Literal["trained", "frozen"] = "trained"
    """Whether the scales of the batch norms are trained, or always 1, also in the last norm of a
    block, which otherwise begins at 0.
    """
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The weight of a batch in the running statistics of batch norms, as in torch; 1 - m for the
    momentum m of airbench.
    """
    block_dropout: ShareBelowOne = 0.0
    """The dropout rate inside each block."""
    head_dropout: ShareBelowOne = 0.0
    """The dropout rate before the classifier."""
    zero_gamma: bool = True
    """Whether the scale of each block's last norm begins at 0 instead of 1."""
    args: Arguments = Arguments()
    """The arguments of a network of your own code: any keys with plain values or lists of them."""
    normalize: bool = False
    """Whether a network of your own code receives normalised images."""
    code: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """The sha256 of your own code; a run records it, so do not write it yourself."""

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

    network: str = "wrn"
    """The network: `wrn` with `depth` and `widen`, or any network that a student may be: `resnet`,
    `timm/NAME`, a name of docs/networks.md, or `FILE.py:NAME` of your own.
    """
    depth: Annotated[int, Field(ge=1, le=2_000)] = 28
    """The depth of a Wide ResNet: 10, 16, 22, 28, …"""
    widen: Annotated[int, Field(ge=1, le=1_000)] = 10
    """The widening factor k of a Wide ResNet, whose stages have 16 k, 32 k and 64 k channels."""
    dropout: ShareBelowOne = 0.0
    """The dropout rate inside the blocks of a Wide ResNet."""
    runs: Names = ()
    """The run folders of trained teachers, as after `--teacher`; several are an ensemble."""
    draw: Literal["all", "one"] = "all"
    """How several teachers are used: the mean of all, or one that is drawn for each view."""
    mirror: bool = False
    """Average the teacher over each image and its mirror image: twice the forward passes."""
    weights: Weights = ()
    """One weight per teacher, in the mean or in the random draw; equal by default."""


class Student(ResNetKeys):
    """The student's network."""

    projector_width: Channels | None = None
    """The output channels of SimKD's projector: as many as the teacher's classifier has inputs."""
    projector_factor: Channels = 2
    """The projector's inner maps have fewer channels by this factor."""
    max_params: Annotated[int, Field(ge=1, le=MOST * 1_000)] = 5_000_000
    """The parameter budget: a student with as many parameters or more is refused."""


class Optim(Table):
    """The optimizer, by timm's names: `sgd` is Nesterov's, `momentum` the plain one."""

    name: OptimizerName = "sgd"
    """The optimizer, by timm's name; `sgd` is Nesterov's, `momentum` the plain one."""
    lr: Rate = 0.1
    """The peak of the learning rate."""
    bias_lr: Annotated[float, Field(ge=0.001, le=10_000)] = 1.0
    """A factor on the learning rate for the biases of batch norms, and for the bias of a stem
    without one.
    """
    min_lr: Annotated[float, Field(ge=0, le=1e30)] = 0.0
    """The lowest learning rate after the peak; a retry multiplies it by `retry_lr` like all rates.
    """
    momentum: ShareBelowOne = 0.9
    """The momentum, for optimizers that have one."""
    betas: Betas | None = None
    """The decay rates of the two moments, for optimizers of Adam's kind; by default timm's."""
    eps: Positive | None = None
    """The number that is added to denominators; by default timm's."""
    weight_decay: NotNegative = 5e-4
    """The weight decay."""
    decay_norm: bool = True
    """Whether batch norms and biases have weight decay too."""
    schedule: Literal["cosine", "linear", "constant", "step", "milestones", "one_cycle"] = "cosine"
    """How the learning rate falls after the warmup; `one_cycle` has a warmup of its own."""
    step_epochs: Epochs = 10
    """For the schedule `step`: the learning rate is multiplied by `gamma` each time this many
    epochs have passed.
    """
    milestones: Milestones = ()
    """For the schedule `milestones`: the epochs after which the learning rate is multiplied by
    `gamma`, for example `[150, 180, 210]`.
    """
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The factor on the learning rate of the schedules `step` and `milestones`."""
    warmup_epochs: NotNegative = 0.0
    """The learning rate rises linearly from 0 to its peak during so many epochs."""
    clip: Positive | None = None
    """The largest norm of the gradient; larger gradients are scaled down to it."""


# Marks the keys of [train] that may be changed when a run is resumed: how often it logs and saves,
# what it validates, and whether it retries after diverging. They do not distinguish trainings.
MAY_CHANGE = "may change"


class Train(Table):
    """Length, batch size, precision, saving and retries of the training."""

    epochs: Epochs | None = None
    """The length of the training in epochs; either this or `minutes` is needed."""
    minutes: Positive | None = None
    """The length of the training in minutes: the first steps are timed to plan how many fit."""
    resolution: Resolution | None = None
    """The size of the training images in pixels, `[[fraction of the epochs, size], …]`; by default
    full size throughout.
    """
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """The images of one optimizer step, over all processes and accumulated parts."""
    drop_last: bool = True
    """Whether to leave out the last batch of an epoch if it has fewer images than `batch_size`."""
    seed: Seed = 0
    """The seed of initial weights and dropout."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The precision of the computation; `auto`: bf16 on GPUs that support it, fp16 on older ones,
    fp32 on a CPU.
    """
    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the networks; `auto`: on a GPU, if a measured step is faster."""
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Compute the batch in this many parts, one after the other, to use less memory."""
    sync_batch_norm: bool = False
    """Whether batch norms use mean and variance over all GPUs, not per GPU."""
    log_every: Annotated[Count, MAY_CHANGE] = 50
    """Log metrics every this many steps."""
    save_every: Annotated[Count, MAY_CHANGE] = 1
    """Save a checkpoint every this many epochs."""
    save_steps: Annotated[Count | None, MAY_CHANGE] = None
    """Save a checkpoint also every this many steps."""
    save_minutes: Annotated[Positive | None, MAY_CHANGE] = 10.0
    """Save a checkpoint also every this many minutes."""
    keep_epochs: Annotated[EpochsOrNone | Literal["auto"], MAY_CHANGE] = "auto"
    """Save the weights permanently every this many epochs and after the last one; 0 saves none.
    `auto`: those of about 20 epochs, spread over the run, if they fit on the disk.
    """
    validate_both: Annotated[bool, MAY_CHANGE] = False
    """With `[ema]`, validate the trained weights too, not only their average."""
    retries: Annotated[int, Field(ge=0, le=1_000), MAY_CHANGE] = 0
    """How often to go back to the last checkpoint if the loss diverges."""
    retry_lr: Annotated[float, Field(gt=0, lt=1), MAY_CHANGE] = 0.5
    """The factor on all learning rates at each retry."""


LOGGING_AND_SAVING = frozenset(
    name for name, field in Train.model_fields.items() if MAY_CHANGE in field.metadata
)


class Ema(Table):
    """An exponential moving average of the weights, with a decay per step or a half-life."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    """The decay of the average per step; either this or `half_life`."""
    half_life: Annotated[float, Field(ge=0.001, le=MOST)] | None = None
    """The half-life of the average in epochs; the decay is 0.5 ** (1 / (half_life * steps per
    epoch)).
    """
    warmup: bool = True
    """Whether the decay at step t is at most (1 + t) / (10 + t)."""
    norm_statistics: Literal["averaged", "re-estimated"] = "averaged"
    """How the running statistics of batch norms are set: averaged like the weights, or re-estimated
    for the averaged weights after each epoch.
    """

    @model_validator(mode="before")
    @classmethod
    def _half_life_replaces_decay(cls, values: Any) -> Any:
        """Drop the default decay if a half-life is set."""
        has_half_life = isinstance(values, dict) and values.get("half_life") is not None
        return {"decay": None} | values if has_half_life else values


class Cache(Table):
    """The cache of teacher logits, stored by view."""

    views: Epochs | None = None
    """The number of views: epoch e trains on view e mod `views`; by default one view per epoch."""


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
