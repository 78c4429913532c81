"""The tables of a recipe: every key, its type, its range, its default.

A table is a frozen pydantic model: strict types (a whole number may stand for a number), unknown
keys refused. `None` is an absent key; an absent table is off.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Counts = Annotated[tuple[Count, ...], Field(strict=False)]  # TOML has lists, frozen wants tuples
Names = Annotated[tuple[str, ...], Field(strict=False)]


class About(BaseModel):
    """The lab note: what is claimed, how to see it, what it took. Outside the fingerprint."""

    model_config = STRICT
    claim: str = ""
    command: str = ""
    teacher: str = ""
    hardware: str = ""
    minutes: str = ""
    accuracy: str = ""  # mean ± std over n seeds, or "not yet run"


class Data(BaseModel):
    """The images, and which of them are held out for selection."""

    model_config = STRICT
    source: str = "cifar10"  # synthetic, cifar10, cifar100 or a path
    seed: Seed = 0  # order, augmentation and mixing
    holdout: ShareBelowOne = 0.1
    train_images: Count | None = None  # only this many of the training images, class by class


class Crop(BaseModel):
    """A random crop out of the padded image."""

    model_config = STRICT
    padding: Annotated[int, Field(ge=1, le=16)] = 4  # pixels on each side


class Flip(BaseModel):
    """A mirror image, left to right."""

    model_config = STRICT
    prob: Share = 0.5


class Augment(BaseModel):
    """What is done to one image."""

    model_config = STRICT
    crop: Crop | None = None
    flip: Flip | None = None


class Mixup(BaseModel):
    """Blending two images; lambda ~ Beta(alpha, alpha)."""

    model_config = STRICT
    prob: Share = 1.0
    alpha: Positive = 1.0


class Cutmix(BaseModel):
    """A box of one image pasted into another; its area from Beta(alpha, alpha)."""

    model_config = STRICT
    prob: Share = 1.0
    alpha: Positive = 1.0


class Mix(BaseModel):
    """What is done to two images; each sample is mixed in one way at most."""

    model_config = STRICT
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None


class Teacher(BaseModel):
    """The network that teaches, and where trained ones lie."""

    model_config = STRICT
    network: str = "wrn"  # or "timm/NAME"
    depth: Count = 28
    widen: Count = 10
    dropout: ShareBelowOne = 0.0
    runs: Names = ()  # folders of trained teachers; several are an ensemble


class Student(BaseModel):
    """The network that is taught: what `Design.of` takes, and what has no parameters."""

    model_config = STRICT
    stages: Count
    blocks: Count | Counts
    width: Count | None = None  # of the first stage; doubles. Either this or channels
    channels: Counts | None = None
    kernel: Count | Counts = 3
    skip_kernel: Count | Counts = 1
    stem_kernel: Count | None = None  # the first stage's kernel
    stem_width: Count | None = None  # the first stage's channels
    stem_stride: Count = 1
    stem_pool: bool = False
    stage_strides: Counts | None = None  # 1, 2, 2, ...
    convs_per_block: Count = 2
    pool: Literal["global"] | Count = "global"
    activation: Literal["relu", "leaky_relu", "gelu", "tanh"] = "relu"
    block_dropout: ShareBelowOne = 0.0
    head_dropout: ShareBelowOne = 0.0
    max_params: Count = 5_000_000  # the student has strictly fewer

    def spec(self) -> dict[str, Any]:
        """The keyword arguments of `Design.of`."""
        beside = {"activation", "block_dropout", "head_dropout", "max_params"}
        return self.model_dump(mode="json", exclude=beside)


class Hard(BaseModel):
    """The labels' term."""

    model_config = STRICT
    needs: ClassVar = frozenset({"labels"})
    weight: NotNegative = 1.0
    label_smoothing: ShareBelowOne = 0.0


class Kd(BaseModel):
    """The teacher's term: Hinton's, arXiv 1503.02531."""

    model_config = STRICT
    needs: ClassVar = frozenset({"live teacher"})
    weight: NotNegative = 0.9
    temperature: Positive = 4.0


class Losses(BaseModel):
    """The terms of the objective, each with its weight."""

    model_config = STRICT
    hard: Hard | None = None
    kd: Kd | None = None

    def terms(self) -> dict[str, Hard | Kd]:
        """The terms present, by name, in the order of this table."""
        return {name: term for name, term in self if term is not None}


class Optim(BaseModel):
    """The optimizer, by timm's names: `sgd` is Nesterov's, `momentum` is plain."""

    model_config = STRICT
    name: Literal["sgd", "momentum", "adamw"] = "sgd"
    lr: Positive = 0.1  # the peak
    momentum: ShareBelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    decay_norm: bool = True
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    clip: Positive | None = None  # the largest norm of the gradient


class Train(BaseModel):
    """How long, in what portions, how precisely."""

    model_config = STRICT
    epochs: Count
    batch_size: Count = 512  # of one optimizer step, over all processes and accumulation
    seed: Seed = 0  # initial weights and dropout
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    accumulate: Count = 1
    log_every: Count = 50  # steps
    save_every: Count = 1  # epochs


class Ema(BaseModel):
    """A running mean of the student's weights."""

    model_config = STRICT
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True  # min(decay, (1 + t) / (10 + t))


class Recipe(BaseModel):
    """A whole, resolved recipe. Made by `distill.recipe`, which knows files and composition."""

    model_config = STRICT
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
