"""A student network described by plain numbers, with its parameter and MAC counts in closed form.

Layers are counted as in the published reports listed in tests/students/architectures.json: a
convolution has no bias and is followed by a batch norm; the skip is a convolution only if the shape
changes, otherwise the identity (He et al. 2016, arXiv 1512.03385, option B); there is one linear
layer, with bias.

`downsample` is how stages halve their maps. With "stride" the first block of a stage has a stride.
With "pool" each stage begins with a convolution, a max pool, a batch norm and an activation, and
its residual blocks, if any, do not change the shape. That is the layout of the ResNet-9 of D. Page
(davidcpage/cifar10-fast) and, with one block per stage, of airbench96 (K. Jordan, arXiv
2404.00498).

A whitened stem has 6 k² filters of k x k pixels: the eigenvectors of the covariance of image
patches, and their negatives (`students/whitened_stem.py`). Parameters that are not trained are
counted too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from types import SimpleNamespace
from typing import Any, NamedTuple

from distill.errors import UserError
from students.feature_map_sizes import (
    IMAGE_CHANNELS,
    Downsample,
    NormScale,
    PerStage,
    Pool,
    StemInit,
    first_map,
    last_map,
    reduced,
    spec_faults,
    spread,
    stem_map,
    strided,
    strides_of,
    whitening_filters,
)


class Convolution(NamedTuple):
    """A convolution with a batch norm and no bias, or with a bias and no batch norm."""

    inputs: int
    outputs: int
    kernel: int
    size: int  # height and width of the output map in pixels
    has_norm: bool = True

    @property
    def weights(self) -> int:
        """The number of weights of the kernel, without the batch norm or bias."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """The number of parameters: kernel weights, and batch-norm scale and shift, or bias."""
        return self.weights + (2 if self.has_norm else 1) * self.outputs

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image: every weight is used once per output pixel."""
        return self.weights * self.size**2


@dataclass(frozen=True)
class Design:
    """Describes a residual network: its shape, and which of its parameters are trained.

    `Design.of` validates its arguments; the constructor does not. Every tuple has one number per
    stage.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    skip_kernels: tuple[int, ...]
    stage_strides: tuple[int, ...]  # with downsample "pool": the size of each stage's max pool
    stem_kernel: int
    stem_width: int
    stem_stride: int
    stem_pool: bool  # whether the stem ends in a 3x3 max pool with stride 2 and padding 1
    convs_per_block: int
    pool: Pool  # size and stride of the average pool before the linear layer, or "global"
    classes: int
    image_size: int  # height and width in pixels
    projector_width: int | None = None  # output channels of SimKD's projector; None: no projector
    projector_factor: int = 2  # its inner maps have projector_width // projector_factor channels
    downsample: Downsample = "stride"
    stem_init: StemInit = "random"  # "whiten": the caller computes the stem's filters from images
    stem_frozen: bool = False  # True: the stem's kernels are not trained, only its norm or bias
    stem_norm: bool = True  # whether the stem's convolution has a batch norm instead of a bias
    norm_scale: NormScale = "trained"  # "frozen": every norm's scale stays 1

    @classmethod
    def of(
        cls,
        *,
        stages: int,
        blocks: PerStage,
        width: int | None = None,
        channels: Sequence[int] | None = None,
        kernel: PerStage = 3,
        skip_kernel: PerStage = 1,
        stem_kernel: int | None = None,
        stem_width: int | None = None,
        stem_stride: int = 1,
        stem_pool: bool = False,
        stage_strides: PerStage | None = None,
        convs_per_block: int = 2,
        pool: Pool = "global",
        classes: int = 10,
        image_size: int = 32,
        projector_width: int | None = None,
        projector_factor: int = 2,
        downsample: Downsample = "stride",
        stem_init: StemInit = "random",
        stem_frozen: bool = False,
        stem_norm: bool = True,
        norm_scale: NormScale = "trained",
    ) -> "Design":
        """Return the design with these numbers; raise UserError, naming all faults, if invalid.

        The channels are either `width`, doubled from stage to stage, or `channels`, one number per
        stage. Other arguments may be one number for all stages or a list. By default
        `stage_strides` is 1, 2, 2, ... with downsample "stride" and 2, 2, ... with "pool". With
        "pool" a stage may have 0 blocks. By default `stem_width` is the width of the first stage,
        or 6 k² for a whitened stem of kernel k.
        """
        if faults := spec_faults(SimpleNamespace(**locals())):
            raise UserError(_faults_message(faults))

        kernels = spread(kernel, stages)
        stem_kernel = kernels[0] if stem_kernel is None else stem_kernel
        widths = doubling(width, stages) if width is not None else tuple(channels or ())
        filters = whitening_filters(stem_kernel) if stem_init == "whiten" else widths[0]
        return cls(
            blocks=spread(blocks, stages),
            channels=widths,
            kernels=kernels,
            skip_kernels=spread(skip_kernel, stages),
            stage_strides=strides_of(stage_strides, stages, downsample),
            stem_kernel=stem_kernel,
            stem_width=filters if stem_width is None else stem_width,
            stem_stride=stem_stride,
            stem_pool=stem_pool,
            convs_per_block=convs_per_block,
            pool=pool,
            classes=classes,
            image_size=image_size,
            projector_width=projector_width,
            projector_factor=projector_factor,
            downsample=downsample,
            stem_init=stem_init,
            stem_frozen=stem_frozen,
            stem_norm=stem_norm,
            norm_scale=norm_scale,
        )

    @property
    def stages(self) -> int:
        return len(self.blocks)

    @property
    def summary(self) -> str:
        """A short name, `ResNet [4, 4, 3] 64-128-256`: the blocks and channels of each stage."""
        pooled = " pooled" if self.downsample == "pool" else ""
        projector = f" + projector {self.projector_width}" if self.projector_width else ""
        return f"ResNet {list(self.blocks)} {'-'.join(map(str, self.channels))}{pooled}{projector}"

    @property
    def features(self) -> int:
        """The number of inputs of the linear layer: channels times pixels of the pooled maps."""
        first = first_map(self.image_size, self.stem_kernel, self.stem_stride, self.stem_pool)
        last = last_map(first, self.stage_strides, self.downsample)
        pooled = 1 if self.pool == "global" else last // self.pool
        return (self.projector_width or self.channels[-1]) * pooled**2

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the available feature maps; `maps` is the last map before the pool."""
        stages = (f"stages.{stage}" for stage in range(self.stages))
        projector = ("projector",) if self.projector_width else ()
        return ("stem", *stages, *projector, "maps", "features")

    @property
    def parameters(self) -> int:
        """The number of all parameters, including batch norms and the linear layer's bias."""
        convolutions = sum(conv.parameters for conv in self.convolutions())
        return convolutions + (self.features + 1) * self.classes

    @property
    def trainable(self) -> int:
        """The number of trained parameters: all but frozen stem kernels and frozen norm scales."""
        stem, *others = self.convolutions()
        kernels = stem.weights if self.stem_frozen else 0
        scales = sum(conv.outputs for conv in (stem, *others) if conv.has_norm)
        return self.parameters - kernels - (scales if self.norm_scale == "frozen" else 0)

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image: all convolutions and the linear layer."""
        return sum(conv.macs for conv in self.convolutions()) + self.features * self.classes

    def convolutions(self) -> Iterator[Convolution]:
        """Yield every convolution of the network, starting with the stem's."""
        size = stem_map(self.image_size, self.stem_kernel, self.stem_stride)
        yield Convolution(
            IMAGE_CHANNELS, self.stem_width, self.stem_kernel, size, has_norm=self.stem_norm
        )
        if self.stem_pool:
            size = strided(size, 2)
        inputs = self.stem_width
        for stage, outputs in enumerate(self.channels):
            yield from self._stage(stage, inputs, size)
            inputs, size = outputs, reduced(size, self.stage_strides[stage], self.downsample)
        yield from self._projector(inputs, size)

    def block_stride(self, stage: int, block: int) -> int:
        """Return a block's stride: 1, except in a stage's first block with downsample "stride"."""
        is_first = block == 0 and self.downsample == "stride"
        return self.stage_strides[stage] if is_first else 1

    def _stage(self, stage: int, inputs: int, size: int) -> Iterator[Convolution]:
        """Yield a stage's convolutions.

        `inputs`: channels of the stage's input maps; `size`: their height and width in pixels.
        """
        outputs, kernel = self.channels[stage], self.kernels[stage]
        if self.downsample == "pool":
            yield Convolution(inputs, outputs, kernel, size)
            inputs, size = outputs, size // self.stage_strides[stage]
        for block in range(self.blocks[stage]):
            stride = self.block_stride(stage, block)
            size = strided(size, stride)
            if stride != 1 or inputs != outputs:
                yield Convolution(inputs, outputs, self.skip_kernels[stage], size)
            for _ in range(self.convs_per_block):
                yield Convolution(inputs, outputs, kernel, size)
                inputs = outputs

    def _projector(self, inputs: int, size: int) -> Iterator[Convolution]:
        """Yield the projector's convolutions, 1x1, 3x3, 1x1 (Chen et al., arXiv 2203.14001)."""
        if self.projector_width is not None:
            inner = self.projector_width // self.projector_factor
            yield Convolution(inputs, inner, 1, size)
            yield Convolution(inner, inner, 3, size)
            yield Convolution(inner, self.projector_width, 1, size)


def doubling(width: int, stages: int) -> tuple[int, ...]:
    """Return the channels of each stage: `width`, 2 `width`, 4 `width` …"""
    return tuple(width * 2**stage for stage in range(stages))


def widest(max_params: int, **spec: Any) -> int | None:
    """Return the largest `width` with fewer than `max_params` parameters; None if there is none.

    `spec`: the arguments of `Design.of` except `width` and `channels`. Raises UserError if they are
    invalid.
    """
    return _widest_in_closed_form(max_params, lambda width: Design.of(width=width, **spec))


def over_budget(design: Design, max_params: int) -> str | None:
    """Return a message, with advice, if a design has too many parameters; None if it does not.

    A design must have fewer than `max_params` parameters.
    """
    excess = design.parameters - max_params + 1
    if excess <= 0:
        return None
    fitting = _widest_in_closed_form(max_params, lambda width: _with_doubling_width(design, width))
    return (
        f"{design.summary} has {design.parameters:,} parameters, {excess:,} too many for fewer "
        f"than {max_params:,}; {_advice(design, fitting)}"
    )


def _advice(design: Design, width: int | None) -> str:
    if width is None:
        return "no width of these stages and blocks fits: use fewer stages or blocks"
    stem = " with a stem of this width" if _stem_follows_width(design) else ""
    if design.channels == doubling(design.channels[0], design.stages):
        return f"type --set student.width={width}, the widest that fits{stem}"
    return (
        "its channels are given one by one: lower them, or replace them by the widest doubling "
        f"width of these stages and blocks, width = {width}{stem}"
    )


def _stem_follows_width(design: Design) -> bool:
    """Whether the stem is as wide as the first stage, and not whitened."""
    return design.stem_width == design.channels[0] and design.stem_init == "random"


def _with_doubling_width(design: Design, width: int) -> Design:
    """Return the design with `width` channels in its first stage, doubled in every further stage.

    If its stem is as wide as its first stage, the stem gets `width` channels too.
    """
    follows = _stem_follows_width(design)
    return replace(
        design,
        channels=doubling(width, design.stages),
        stem_width=width if follows else design.stem_width,
    )


def _widest_in_closed_form(max_params: int, at: Callable[[int], Design]) -> int | None:
    """Return the largest width with fewer than `max_params` parameters; None if there is none.

    `at(width)` returns the design of a width. The solution is in closed form: the number of
    parameters is a quadratic polynomial in the width, since kernels grow with the width or its
    square and batch norms with the width. There is one exception: if the stem has a fixed width, a
    first stage of that width needs no skip convolution, so this network may have fewer parameters
    than a narrower one.
    """
    stem = at(1).stem_width  # the fixed width of the stem; 1 if the stem is as wide as stage 1
    first, second, third = (at(stem + more).parameters for more in (1, 2, 3))
    # The network of width stem + 1 + t has (a t^2 + b t) / 2 + first parameters, all integers.
    a = third - 2 * second + first
    b = 2 * (second - first) - a
    under_root = b * b - 8 * a * (first - (max_params - 1))
    widths = [stem]
    if under_root >= 0:
        widths.append(stem + 1 + (isqrt(under_root) - b) // (2 * a))
    return max((w for w in widths if w >= 1 and at(w).parameters < max_params), default=None)


def _faults_message(faults: Sequence[str]) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"{count} in the student's design:", *(f"  {fault}" for fault in faults)])
