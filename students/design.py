"""A student network described by plain numbers, with its parameter and MAC counts in closed form.

Layers are counted as in the published reports listed in tests/students/architectures.json: a
convolution has no bias and is followed by a batch norm; the skip is a convolution only if the shape
changes, otherwise the identity (He et al. 2016, arXiv 1512.03385, option B); there is one linear
layer, with bias.

Stages halve their maps by `downsample`. "stride": the first block of a stage has a stride. "pool":
each stage begins with a convolution, a max pool, a batch norm and an activation, and its residual
blocks, if any, do not change the shape. That is the layout of the ResNet-9 of D. Page
(davidcpage/cifar10-fast) and, with one block per stage, of airbench96 (K. Jordan, arXiv
2404.00498).

A whitened stem has 6 k² filters of k x k pixels: the eigenvectors of the images' patches and their
negatives (`students/whiten.py`). Parameters that are not trained count like any other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from types import SimpleNamespace
from typing import Any, NamedTuple

from distill.errors import UserError
from students.design_spec import (
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
    """A convolution without bias and its batch norm, or one with bias and no batch norm."""

    inputs: int
    outputs: int
    kernel: int
    size: int  # height and width of the output map in pixels
    has_norm: bool = True

    @property
    def weights(self) -> int:
        """The number of the kernel's weights, without those of the batch norm."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """The number of parameters: kernel weights, and batch-norm scale and shift or bias."""
        return self.weights + (2 if self.has_norm else 1) * self.outputs

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image: every weight is used once per output pixel."""
        return self.weights * self.size**2


@dataclass(frozen=True)
class Design:
    """A residual network: its shape, and which of its parameters are trained.

    `Design.of` validates a spec; the constructor does not validate.
    """

    blocks: tuple[int, ...]  # one number per stage, as in every tuple here
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    skip_kernels: tuple[int, ...]
    stage_strides: tuple[int, ...]  # with downsample "pool": the size of each stage's max pool
    stem_kernel: int
    stem_width: int
    stem_stride: int
    stem_pool: bool  # 3x3 max pool, stride 2, padding 1
    convs_per_block: int
    pool: Pool  # size and stride of the average pool
    classes: int
    image_size: int  # height and width in pixels
    projector_width: int | None = None  # channels of a projector's output, the classifier's input
    projector_factor: int = 2  # the projector's inner maps have fewer channels by this factor
    downsample: Downsample = "stride"
    stem_init: StemInit = "random"  # "whiten": the caller computes the stem's filters from images
    stem_frozen: bool = False  # the stem's kernels are not trained; its norm or bias is
    stem_norm: bool = True  # a batch norm after the stem's convolution, else a bias
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
        """Return the design of a spec: `width` doubles stage by stage, `channels` sets each stage.

        `stage_strides` is by default 1, 2, 2 ... with downsample "stride" and 2 everywhere with
        "pool", where a stage may have 0 blocks. `stem_width` is by default the first stage's, and
        6 k² for a whitened stem of kernel k. Raises UserError with every fault of the spec.
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
        """A short name, `ResNet [4, 4, 3] 64-128-256`, which does not show every field."""
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
        """The names of the maps that can be read; `maps` is the last one, before the pool."""
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
        """Yield every convolution, starting with the stem's."""
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
        """Return a block's stride: 1, except for the first block with downsample "stride"."""
        is_first = block == 0 and self.downsample == "stride"
        return self.stage_strides[stage] if is_first else 1

    def _stage(self, stage: int, inputs: int, size: int) -> Iterator[Convolution]:
        """Yield a stage's convolutions.

        `inputs`, `size`: the channels of its input maps, and their height and width in pixels.
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

    `spec` holds the arguments of `Design.of` without `width` and `channels`. Raises UserError for
    its faults.
    """
    return _widest(max_params, lambda width: Design.of(width=width, **spec))


def over_budget(design: Design, max_params: int) -> str | None:
    """Return by how much a design exceeds the budget, with advice; None if it does not.

    A design must have fewer than `max_params` parameters.
    """
    excess = design.parameters - max_params + 1
    if excess <= 0:
        return None
    fitting = _widest(max_params, lambda width: _with_width(design, width))
    return (
        f"{design.summary} has {design.parameters:,} parameters, {excess:,} too many for fewer "
        f"than {max_params:,}; {_advice(design, fitting)}"
    )


def _advice(design: Design, width: int | None) -> str:
    if width is None:
        return "no width of these stages and blocks fits: use fewer stages or blocks"
    stem = ", the stem as wide" if _stem_follows_width(design) else ""
    if design.channels == doubling(design.channels[0], design.stages):
        return f"the widest that fits is width = {width}{stem}"
    return (
        "its channels are given one by one: lower them, or replace them by the widest doubling "
        f"width of these stages and blocks, width = {width}{stem}"
    )


def _stem_follows_width(design: Design) -> bool:
    """Whether the stem is as wide as the first stage, and not whitened."""
    return design.stem_width == design.channels[0] and design.stem_init == "random"


def _with_width(design: Design, width: int) -> Design:
    """Return the design with another doubling width.

    A stem that is as wide as the first stage gets that width too.
    """
    follows = _stem_follows_width(design)
    return replace(
        design,
        channels=doubling(width, design.stages),
        stem_width=width if follows else design.stem_width,
    )


def _widest(max_params: int, at: Callable[[int], Design]) -> int | None:
    """Return the largest width in closed form; None if none fits.

    Kernels grow with the width or its square, batch norms with the width, so that the number of
    parameters is quadratic in the width. There is one exception: if the stem has a fixed width and
    the first stage has the same width, that stage needs no skip convolution, and a wider network
    may have fewer parameters.
    """
    stem = at(1).stem_width  # at width 1, if the stem follows the width
    first, second, third = (at(stem + more).parameters for more in (1, 2, 3))
    # At width stem + 1 + t it has (a t^2 + b t) / 2 + first parameters, in integers.
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
