"""Compute the sizes of a student's feature maps; check the numbers that describe a student."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

IMAGE_CHANNELS = 3
ODD, EVEN = 3, 2  # kernel sizes of the stem: the default, and the only even size allowed
Pool = int | Literal["global"]
Downsample = Literal["stride", "pool"]
StemInit = Literal["random", "whiten"]
NormScale = Literal["trained", "frozen"]
PerStage = int | Sequence[int]


def strided(size: int, stride: int) -> int:
    """Return ceil(size / stride), the map size after a convolution.

    This holds for any odd kernel k with padding (k - 1) // 2.
    """
    return -(-size // stride)


def reduced(size: int, by: int, downsample: Downsample) -> int:
    """Return the map size after a stage whose input maps have `size` x `size` pixels.

    A max pool rounds size / by down, a stride rounds it up.
    """
    return size // by if downsample == "pool" else strided(size, by)


def stem_map(image_size: int, kernel: int, stride: int) -> int:
    """Return the map size after the stem's convolution; a kernel of 2 has no padding."""
    return strided(image_size - (kernel == EVEN), stride)


def first_map(image_size: int, stem_kernel: int, stem_stride: int, stem_pool: bool) -> int:
    """Return the size of the first stage's input maps."""
    return strided(stem_map(image_size, stem_kernel, stem_stride), 2 if stem_pool else 1)


def last_map(first: int, strides: Sequence[int], downsample: Downsample) -> int:
    """Return the size of the last stage's output maps; 0 if the pools leave no pixel."""
    size = first
    for by in strides:
        size = reduced(size, by, downsample)
    return size


def strides_of(
    stage_strides: PerStage | None, stages: int, downsample: Downsample
) -> tuple[int, ...]:
    """Return the stride, or pool size, of each stage.

    The default is 2, 2, ... with downsample "pool" and 1, 2, 2, ... with "stride".
    """
    if stage_strides is None:
        return (2 if downsample == "pool" else 1, *(2,) * (stages - 1))
    return spread(stage_strides, stages)


def spread(value: PerStage, stages: int) -> tuple[int, ...]:
    """Return one number per stage: `value` repeated if it is a number, else `value` as a tuple."""
    return (value,) * stages if isinstance(value, int) else tuple(value)


def whitening_filters(kernel: int) -> int:
    """Return the number of filters of a whitened stem: twice the number of values in a patch.

    A patch has `kernel` x `kernel` pixels of three channels.
    """
    return 2 * IMAGE_CHANNELS * kernel**2


def spec_faults(spec: Any) -> list[str]:
    """Return every fault of a design as a message.

    `spec`: an object whose attributes are the arguments of `Design.of`.
    """
    size_faults = [
        *_count_faults(
            stages=spec.stages, stem_stride=spec.stem_stride, image_size=spec.image_size
        ),
        *_per_stage_faults(spec.stages, stage_strides=spec.stage_strides),
        *_choice_faults(Downsample, downsample=spec.downsample),
    ]
    return [
        *size_faults,
        *_count_faults(
            width=spec.width,
            stem_width=spec.stem_width,
            stem_kernel=spec.stem_kernel,
            classes=spec.classes,
        ),
        *_blocks_faults(spec.stages, spec.blocks, spec.downsample),
        *_per_stage_faults(spec.stages, channels=spec.channels),
        *_per_stage_faults(spec.stages, kernel=spec.kernel, skip_kernel=spec.skip_kernel),
        *_width_faults(spec.width, spec.channels),
        *_even_faults(kernel=spec.kernel, skip_kernel=spec.skip_kernel),
        *_stem_kernel_faults(spec.stem_kernel),
        *_choice_faults(StemInit, stem_init=spec.stem_init),
        *_choice_faults(NormScale, norm_scale=spec.norm_scale),
        *_whitening_faults(spec.stem_init, spec.stem_width, spec.stem_kernel, spec.kernel),
        *_skip_faults(spec.skip_kernel, spec.downsample),
        *_block_faults(spec.convs_per_block),
        *_projector_faults(spec.projector_width, spec.projector_factor),
        *([] if size_faults else _last_map_faults(spec)),
    ]


def _last_map_faults(spec: Any) -> Iterator[str]:
    """Yield the faults of the sizes of feature maps; the strides of `spec` must be valid."""
    strides = strides_of(spec.stage_strides, spec.stages, spec.downsample)
    first = first_map(spec.image_size, spec.stem_kernel or ODD, spec.stem_stride, spec.stem_pool)
    last = last_map(first, strides, spec.downsample)
    yield from _map_faults(first, last, strides, is_given=spec.stage_strides is not None)
    if last:
        yield from _pool_faults(spec.pool, last)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count_faults(**counts: object) -> Iterator[str]:
    for name, value in counts.items():
        if value is not None and not _is_count(value):
            yield f"{name} = {value!r} must be a positive integer"


def _per_stage_faults(stages: object, **values: object) -> Iterator[str]:
    for name, value in values.items():
        if value is None or _is_count(value):
            continue
        if not isinstance(value, list | tuple) or not all(map(_is_count, value)):
            yield f"{name} = {value!r} must be a positive integer or a list of them, one per stage"
        elif _is_count(stages) and len(value) != stages:
            yield f"{name} = {list(value)} has length {len(value)}; stages is {stages}"


def _choice_faults(choices: Any, **values: object) -> Iterator[str]:
    for name, value in values.items():
        if value not in get_args(choices):
            allowed = " or ".join(f'"{choice}"' for choice in get_args(choices))
            yield f"{name} = {value!r} must be {allowed}"


def _blocks_faults(stages: object, blocks: object, downsample: object) -> Iterator[str]:
    """Yield the faults of `blocks`.

    With downsample "pool" some stages may have 0 blocks, but not all.
    """
    numbers = list(blocks) if isinstance(blocks, list | tuple) else []
    are_whole = all(type(number) is int and number >= 0 for number in numbers)
    if not are_whole or 0 not in numbers:
        yield from _per_stage_faults(stages, blocks=blocks)
    elif downsample != "pool":
        yield (
            f"blocks = {numbers} must be a positive integer or a list of them, one per stage; "
            'a stage without blocks needs downsample = "pool"'
        )
    elif _is_count(stages) and len(numbers) != stages:
        yield f"blocks = {numbers} has length {len(numbers)}; stages is {stages}"
    elif not any(numbers):
        yield f"blocks = {numbers} has no residual block; give one stage 1 or more"


def _skip_faults(skip_kernel: object, downsample: object) -> Iterator[str]:
    kernels = skip_kernel if isinstance(skip_kernel, list | tuple) else [skip_kernel]
    if downsample == "pool" and any(kernel != 1 for kernel in kernels):
        yield (
            f'skip_kernel = {skip_kernel} has no effect with downsample = "pool", whose blocks '
            "keep their shape and need no skip convolution; remove it"
        )


def _map_faults(
    first_map: int, last_map: int, strides: Sequence[int], *, is_given: bool
) -> Iterator[str]:
    if last_map == 0:
        key = f"stage_strides = {list(strides)}" if is_given else f"stages = {len(strides)}"
        yield (
            f"{key} pool a {first_map}x{first_map} map to nothing; use fewer stages, or "
            "stage_strides with some 1, which do not pool"
        )


def _width_faults(width: object, channels: object) -> Iterator[str]:
    if width is None and channels is None:
        yield "neither width nor channels is given; width = 64 doubles stage by stage"
    if width is not None and channels is not None:
        yield f"width = {width} and channels = {channels} exclude each other; give one of them"
    if isinstance(channels, int):
        yield f"channels = {channels} must be a list, one per stage; width = {channels} doubles"


def _even_faults(**kernels: object) -> Iterator[str]:
    for name, value in kernels.items():
        sizes = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(size, int) and size > 0 and size % 2 == 0 for size in sizes):
            yield f"{name} = {value} must be odd: padding (k-1)//2 centres odd kernels only"


def _stem_kernel_faults(kernel: object) -> Iterator[str]:
    if kernel != EVEN and any(_even_faults(stem_kernel=kernel)):
        yield f"stem_kernel = {kernel} must be odd or {EVEN}, which has no padding"


def _whitening_faults(
    stem_init: object, stem_width: object, stem_kernel: object, kernel: object
) -> Iterator[str]:
    first = kernel[0] if isinstance(kernel, list | tuple) and kernel else kernel
    side = first if stem_kernel is None else stem_kernel
    if stem_init != "whiten" or not _is_count(stem_width) or not isinstance(side, int):
        return
    if stem_width != whitening_filters(side):
        yield (
            f'stem_width = {stem_width} does not fit stem_init = "whiten", which makes '
            f"{whitening_filters(side)} filters of {side}x{side} pixels; remove it, or give "
            f"{whitening_filters(side)}"
        )


def _block_faults(convs_per_block: object) -> Iterator[str]:
    # One is too few, since block_dropout acts between the first two convolutions of a block.
    if not isinstance(convs_per_block, int) or convs_per_block < 2:
        yield f"convs_per_block = {convs_per_block!r} must be 2 or more"


def _projector_faults(width: object, factor: object) -> Iterator[str]:
    yield from _count_faults(projector_width=width, projector_factor=factor)
    if isinstance(width, int) and isinstance(factor, int) and factor > width > 0:
        yield f"projector_factor = {factor} leaves no channel of projector_width = {width}"


def _pool_faults(pool: Pool, last_map: int) -> Iterator[str]:
    if pool == "global":
        return
    if not _is_count(pool):
        yield f'pool = {pool!r} must be "global" or a positive integer'
    elif pool > last_map:
        yield f'pool = {pool} is larger than the last map, {last_map}x{last_map}; "global" fits any'
