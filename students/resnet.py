"""Build the residual network that a `Design` describes (post-activation blocks).

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from distill.errors import UserError
from students.design import Design
from students.feature_map_sizes import IMAGE_CHANNELS
from students.normalize_images import Normalize

CELU_ALPHA = 0.075  # as in davidcpage/cifar10-fast (D. Page); torch's default is 1
# In place if torch offers that: the input is a norm's output, which no other module reads and no
# gradient needs.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "celu": partial(nn.CELU, CELU_ALPHA, inplace=True),
    "silu": nn.SiLU,
}


class ResNet(nn.Module):
    """The network of a `Design`: images [B, 3, H, W] in [0, 1] to logits [B, classes].

    It normalises its input. With a projector it is SimKD's student (arXiv 2203.14001), whose
    classifier is copied from a teacher and reads the pooled output of the projector.
    `block_dropout` acts in each block between the first batch norm and the activation (as in the
    network res_512_d of tests/students/architectures.json), `head_dropout` before the linear layer;
    both are probabilities in [0, 1). `norm_momentum`, in (0, 1], is the weight of a new batch in
    the running statistics of batch norms, as in torch. `zero_gamma`: whether the scale of each
    block's last norm begins at 0 instead of 1. Raises UserError if the activation is unknown, or a
    dropout or the momentum is out of range.
    """

    def __init__(
        self,
        design: Design,
        activation: str = "relu",
        block_dropout: float = 0.0,
        head_dropout: float = 0.0,
        norm_momentum: float = 0.1,
        zero_gamma: bool = True,
    ) -> None:
        super().__init__()
        _check(activation, norm_momentum, block_dropout=block_dropout, head_dropout=head_dropout)
        self.design = design
        self.normalize = Normalize()
        self.stem = _stem(design, activation)
        self.stages = _stages(design, activation, block_dropout)
        self.projector = _projector(design)
        self.pool = (
            nn.AdaptiveAvgPool2d(1) if design.pool == "global" else nn.AvgPool2d(design.pool)
        )
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(design.features, design.classes)
        self._initialise(zero_gamma)
        self._set_norms(norm_momentum)
        if design.stem_frozen:
            self.stem_conv.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.projector(self.stages(self.stem(self.normalize(images))))
        features = self.flatten(self.pool(maps))
        logits: Tensor = self.head(self.dropout(features))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are available as taps, by tap name."""
        points = {"stem": self.stem} | {f"stages.{i}": s for i, s in enumerate(self.stages)}
        if len(self.projector):
            points["projector"] = self.projector
        last = self.projector if len(self.projector) else self.stages
        return points | {"maps": last, "features": self.flatten}

    @property
    def stem_conv(self) -> nn.Conv2d:
        """Return the first convolution, whose filters the caller computes for a whitened stem."""
        first = self.stem[0]
        assert isinstance(first, nn.Conv2d)
        return first

    def _initialise(self, zero_gamma: bool) -> None:
        """Initialise convolutions as in He et al. (2015, arXiv 1502.01852), and scales of norms.

        If `zero_gamma`, the scale of each block's last norm begins at 0. If scales are frozen it is
        1, as in airbench96: with a constant scale of 0, blocks could not learn.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if zero_gamma and isinstance(module, Block) and self.design.norm_scale == "trained":
                # At first a block computes only its skip, so that the signal has the same scale at
                # any depth and high learning rates are safe from the first step (Goyal et al. 2017,
                # arXiv 1706.02677, 5.1).
                nn.init.zeros_(module.last_norm.weight)

    def _set_norms(self, momentum: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
                module.weight.requires_grad_(self.design.norm_scale == "trained")


class Block(nn.Module):
    """Compute act(skip(x) + residual(x)): [B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        skip_kernel: int,
        stride: int,
        convs: int,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        changes_shape = stride != 1 or inputs != outputs
        self.skip = (
            nn.Sequential(_conv(inputs, outputs, skip_kernel, stride), nn.BatchNorm2d(outputs))
            if changes_shape
            else nn.Identity()
        )
        # Dropout of 0 has no effect, but its position in `layers` is part of the weights' names.
        layers = [
            _conv(inputs, outputs, kernel, stride),
            nn.BatchNorm2d(outputs),
            nn.Dropout(dropout),
        ]
        for _ in range(convs - 1):
            layers += [
                ACTIVATIONS[activation](),
                _conv(outputs, outputs, kernel),
                nn.BatchNorm2d(outputs),
            ]
        self.residual = nn.Sequential(*layers)
        self.activation = ACTIVATIONS[activation]()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        norm = self.residual[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.residual(maps)
        out: Tensor = self.activation(
            residual.add_(self.skip(maps))
        )  # in place: nothing else reads the norm's output
        return out


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    padding = (kernel - 1) // 2  # none for a kernel of 2
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)


def _stem(design: Design, activation: str) -> nn.Sequential:
    width, kernel, stride = design.stem_width, design.stem_kernel, design.stem_stride
    stem = nn.Sequential(
        _conv(IMAGE_CHANNELS, width, kernel, stride, bias=not design.stem_norm),
        *([nn.BatchNorm2d(width)] if design.stem_norm else []),
        ACTIVATIONS[activation](),
    )
    if design.stem_pool:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    return stem


def _stages(design: Design, activation: str, dropout: float) -> nn.Sequential:
    before = (design.stem_width, *design.channels)
    return nn.Sequential(
        *(
            nn.Sequential(*_stage_modules(design, stage, before[stage], activation, dropout))
            for stage in range(design.stages)
        )
    )


def _stage_modules(
    design: Design, stage: int, inputs: int, activation: str, dropout: float
) -> Iterator[nn.Module]:
    """Yield the modules of one stage; only the first module has a stride or a pool."""
    outputs = design.channels[stage]
    if design.downsample == "pool":
        side = design.stage_strides[stage]
        yield _conv_and_pool(inputs, outputs, design.kernels[stage], side, activation)
        inputs = outputs
    for block in range(design.blocks[stage]):
        yield Block(
            inputs if block == 0 else outputs,
            outputs,
            kernel=design.kernels[stage],
            skip_kernel=design.skip_kernels[stage],
            stride=design.block_stride(stage, block),
            convs=design.convs_per_block,
            activation=activation,
            dropout=dropout,
        )


def _conv_and_pool(
    inputs: int, outputs: int, kernel: int, side: int, activation: str
) -> nn.Sequential:
    """Build a convolution, max pool, norm and activation, in this order.

    `side`: size and stride of the pool; 1 means no pool. [B, inputs, H, W] becomes [B, outputs,
    H // side, W // side]. The norm comes after the pool, where it costs `side`² times less; the
    accuracy is about the same (D. Page, davidcpage/cifar10-fast, "bag of tricks").
    """
    pool = {"pool": nn.MaxPool2d(side)} if side != 1 else {}
    layers: dict[str, nn.Module] = {
        "conv": _conv(inputs, outputs, kernel),
        **pool,
        "norm": nn.BatchNorm2d(outputs),
        "activation": ACTIVATIONS[activation](),
    }
    return nn.Sequential(OrderedDict(layers))


def _projector(design: Design) -> nn.Sequential:
    """Build SimKD's projector; without `projector_width` an empty module.

    It has convolutions 1x1, 3x3 and 1x1, each with batch norm and ReLU. It ends in a ReLU because
    the teacher's maps do.
    """
    projector = nn.Sequential()
    if design.projector_width is not None:
        inner = design.projector_width // design.projector_factor
        for inputs, outputs, kernel in (
            (design.channels[-1], inner, 1),
            (inner, inner, 3),
            (inner, design.projector_width, 1),
        ):
            projector.extend(
                [_conv(inputs, outputs, kernel), nn.BatchNorm2d(outputs), ACTIVATIONS["relu"]()]
            )
    return projector


def _check(activation: str, norm_momentum: float, **dropouts: float) -> None:
    faults = [
        f"{name} = {share} must be at least 0 and below 1"
        for name, share in dropouts.items()
        if not 0 <= share < 1
    ]
    if not 0 < norm_momentum <= 1:
        faults.append(f"norm_momentum = {norm_momentum} must be above 0 and at most 1")
    if activation not in ACTIVATIONS:
        faults.append(f'activation = "{activation}" is not one of {", ".join(ACTIVATIONS)}')
    if faults:
        raise UserError("the student cannot be built: " + "; ".join(faults))
