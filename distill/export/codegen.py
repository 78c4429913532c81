"""Generate readable Python source for a student network.

Only what the design uses is written: no projection shortcut if no block changes the shape, no
dropout if its rate is 0, and an argument of a block only if the stages differ in it. The lines are
formatted as by `ruff format`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import indent

from distill.files.escape_text import python_docstring
from students.design import Design
from students.feature_map_sizes import IMAGE_CHANNELS
from students.resnet import CELU_ALPHA

ACTIVATIONS = {
    "relu": "F.relu",
    "leaky_relu": "F.leaky_relu",
    "gelu": "F.gelu",
    "tanh": "torch.tanh",
    "celu": "celu",
    "silu": "F.silu",
}
CELU = f'''def celu(x):
    """CELU with the alpha of the training; the default of torch is 1."""
    return F.celu(x, {CELU_ALPHA})
'''
CONV = '''def conv(inputs, outputs, kernel, stride=1):
    """No bias: a batch norm follows. The padding keeps the size, up to the stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
'''
MODEL = '''def project1_model():
    """The network with random weights; project1_model.pt holds the trained ones."""
    return ResNet()
'''


@dataclass(frozen=True)
class StudentSpec:
    """Describes a student network for which source is generated."""

    design: Design
    activation: str  # a key of ACTIVATIONS
    block_dropout: float
    head_dropout: float
    # Scale and shift of each input channel; None if the input needs no renormalisation.
    renormalise: tuple[Sequence[float], Sequence[float]] | None


def generate(student: StudentSpec, docstring: str) -> str:
    """Return the source of a file whose function `project1_model()` returns the network.

    `docstring`: plain text for the file's docstring; it may contain names from the run's files, and
    is escaped here.
    """
    needs_torch = student.activation == "tanh" or student.renormalise is not None
    imports = [
        *(["import torch"] if needs_torch else []),
        "from torch import nn",
        *(["from torch.nn import functional as F"] if student.activation != "tanh" else []),
    ]
    head = f'"""{python_docstring(docstring.strip())}\n"""\n\n' + "\n".join(imports)
    return "\n\n\n".join(part.strip() for part in (head, *_definitions(student))) + "\n"


def generated_weight_name(name: str) -> str | None:
    """Return the name that a weight of `students.resnet` has in the generated network.

    Returns None for the mean and std of the input, which the generated network does not have.
    """
    for pattern, into in (
        (r"stem\.0\.", "conv1."),
        (r"stem\.1\.", "bn1."),
        (r"head\.", "linear."),
        (r"projector\.", "projector."),
    ):
        if re.match(pattern, name):
            return re.sub(pattern, into, name, count=1)
    pooled = re.match(r"stages\.(\d+)\.0\.(conv|norm)\.(\w+)", name)
    if pooled is not None:
        stage, kind, what = pooled.groups()
        return f"layer{int(stage) + 1}.0.{'conv' if kind == 'conv' else 'bn'}.{what}"
    block = re.match(r"stages\.(\d+)\.(\d+)\.(\w+)\.(\d+)\.(\w+)", name)
    if block is None:
        return None  # the mean or std of the input
    stage, number, part, index, what = block.groups()
    prefix = f"layer{int(stage) + 1}.{number}"
    if part == "skip":
        return f"{prefix}.skip.{index}.{what}"
    # The layers of a block are conv, bn, dropout; then act, conv, bn, repeated.
    triple, position = divmod(int(index), 3)
    kind = "conv" if position == (1 if triple else 0) else "bn"
    return f"{prefix}.{kind}{triple + 1}.{what}"


def _definitions(student: StudentSpec) -> Iterator[str]:
    yield CONV
    if student.activation == "celu":
        yield CELU
    if student.design.downsample == "pool":
        yield "\n".join(_pooled_conv(student))
    yield "\n".join(_block(student))
    yield "\n".join(_layer(student.design))
    yield "\n".join(_network(student))
    yield MODEL


def _skip_kernels(design: Design) -> list[int]:
    """Return the kernel sizes of the projection shortcuts, one per stage whose first block changes
    the shape.
    """
    if design.downsample == "pool":
        return []
    before = (design.stem_width, *design.channels)
    return [
        design.skip_kernels[i]
        for i in range(design.stages)
        if design.stage_strides[i] != 1 or before[i] != design.channels[i]
    ]


def _stage_arguments(design: Design) -> dict[str, Sequence[int]]:
    """Return the arguments of a generated stage besides channels and blocks, by name, with the
    value for each stage.
    """
    arguments: dict[str, Sequence[int]] = {}
    if design.downsample == "pool":
        if len(set(design.stage_strides)) > 1:
            arguments["pool"] = design.stage_strides
    elif any(stride != 1 for stride in design.stage_strides):
        arguments["stride"] = design.stage_strides
    if len(set(design.kernels)) > 1:
        arguments["kernel"] = design.kernels
    if len(set(_skip_kernels(design))) > 1:
        arguments["skip_kernel"] = design.skip_kernels
    return arguments


def _pooled_conv(student: StudentSpec) -> Iterator[str]:
    """Yield the source of `PooledConv`, the first layer of a stage that pools."""
    design, arguments = student.design, _stage_arguments(student.design)
    side = "pool" if "pool" in arguments else str(design.stage_strides[0])
    kernel = "kernel" if "kernel" in arguments else str(design.kernels[0])
    pools = side != "1"
    sizes = f"H // {side}, W // {side}" if pools else "H, W"
    yield "class PooledConv(nn.Module):"
    yield f'    """[B, inputs, H, W] to [B, outputs, {sizes}]."""\n'
    yield f"    def __init__(self, {', '.join(['inputs', 'outputs', *arguments])}):"
    yield "        super().__init__()"
    yield f"        self.conv = conv(inputs, outputs, {kernel})"
    if pools:
        yield f"        self.pool = nn.MaxPool2d({side})"
    yield "        self.bn = nn.BatchNorm2d(outputs)"
    yield "\n    def forward(self, x):"
    maps = "self.pool(self.conv(x))" if pools else "self.conv(x)"
    yield f"        return {ACTIVATIONS[student.activation]}(self.bn({maps}))"


def _block(student: StudentSpec) -> Iterator[str]:
    design, act = student.design, ACTIVATIONS[student.activation]
    arguments = _block_arguments(design)
    kernel = "kernel" if "kernel" in arguments else str(design.kernels[0])
    stride = ", stride" if "stride" in arguments else ""
    sizes = "H/stride, W/stride" if stride else "H, W"
    numbers = range(2, design.convs_per_block + 1)
    channels = ["channels"] if design.downsample == "pool" else ["inputs", "outputs"]
    inputs, outputs = channels[0], channels[-1]
    yield "class BasicBlock(nn.Module):"
    yield f'    """[B, {inputs}, H, W] to [B, {outputs}, {sizes}] (arXiv 1512.03385)."""\n'
    yield f"    def __init__(self, {', '.join([*channels, *arguments])}):"
    yield "        super().__init__()"
    yield f"        self.conv1 = conv({inputs}, {outputs}, {kernel}{stride})"
    yield f"        self.bn1 = nn.BatchNorm2d({outputs})"
    if student.block_dropout:
        yield f"        self.dropout = nn.Dropout({student.block_dropout})"
    for i in numbers:
        yield f"        self.conv{i} = conv({outputs}, {outputs}, {kernel})"
        yield f"        self.bn{i} = nn.BatchNorm2d({outputs})"
    if _skip_kernels(design):
        yield from _skip(design, bool(stride), "skip_kernel" in arguments)
    yield "\n    def forward(self, x):"
    first = "self.bn1(self.conv1(x))"
    yield f"        out = {f'self.dropout({first})' if student.block_dropout else first}"
    for i in numbers:
        yield f"        out = self.bn{i}(self.conv{i}({act}(out)))"
    yield f"        return {act}(out + {'self.skip(x)' if _skip_kernels(design) else 'x'})"


def _skip(design: Design, strided: bool, several: bool) -> Iterator[str]:
    kernel = "skip_kernel" if several else _skip_kernels(design)[0]
    changes = "stride != 1 or inputs != outputs" if strided else "inputs != outputs"
    yield "        self.skip = nn.Sequential()  # the identity, unless the shape changes"
    yield f"        if {changes}:"
    yield "            self.skip = nn.Sequential("
    yield f"                conv(inputs, outputs, {kernel}{', stride' if strided else ''}),"
    yield "                nn.BatchNorm2d(outputs),"
    yield "            )"


def _block_arguments(design: Design) -> list[str]:
    """Return the names of a generated block's arguments besides its channels."""
    return [name for name in _stage_arguments(design) if name != "pool"]


def _layer(design: Design) -> Iterator[str]:
    if design.downsample == "pool":
        yield from _pooled_stage(design)
        return
    arguments = list(_stage_arguments(design))
    rest = ["1" if name == "stride" else name for name in arguments]
    yield f"def layer({', '.join(['inputs', 'outputs', 'blocks', *arguments])}):"
    yield '    """A stage of `blocks` blocks; only the first may change the shape."""'
    yield f"    stage = [BasicBlock({', '.join(['inputs', 'outputs', *arguments])})]"
    yield "    for _ in range(blocks - 1):"
    yield f"        stage.append(BasicBlock({', '.join(['outputs', 'outputs', *rest])}))"
    yield "    return nn.Sequential(*stage)"


def _pooled_stage(design: Design) -> Iterator[str]:
    arguments = list(_stage_arguments(design))
    yield f"def layer({', '.join(['inputs', 'outputs', 'blocks', *arguments])}):"
    yield '    """A stage: a convolution that may pool, then `blocks` blocks."""'
    yield f"    stage = [PooledConv({', '.join(['inputs', 'outputs', *arguments])})]"
    yield "    for _ in range(blocks):"
    yield f"        stage.append(BasicBlock({', '.join(['outputs', *_block_arguments(design)])}))"
    yield "    return nn.Sequential(*stage)"


def _network(student: StudentSpec) -> Iterator[str]:
    design, act = student.design, ACTIVATIONS[student.activation]
    size = design.image_size
    shapes = f"[B, 3, {size}, {size}], normalised, to logits [B, {design.classes}]"
    yield "class ResNet(nn.Module):"
    yield f'    """Images {shapes}."""\n'
    yield "    def __init__(self):"
    yield "        super().__init__()"
    yield indent("\n".join(_modules(student)), 8 * " ")
    yield "\n    def forward(self, x):"
    if student.renormalise:
        yield "        x = x * self.scale + self.shift"
    yield f"        x = {act}({'self.bn1(self.conv1(x))' if design.stem_norm else 'self.conv1(x)'})"
    parts = [f"layer{stage + 1}" for stage in range(design.stages)]
    pool = ["maxpool"] if design.stem_pool else []
    projector = ["projector"] if design.projector_width else []
    for part in (*pool, *parts, *projector):
        yield f"        x = self.{part}(x)"
    yield "        x = self.pool(x).flatten(1)"
    yield f"        return self.linear({'self.dropout(x)' if student.head_dropout else 'x'})"


def _modules(student: StudentSpec) -> Iterator[str]:
    """Yield the lines that create the layers of the network."""
    design = student.design
    if student.renormalise:
        yield from _renormalising(*student.renormalise)
    yield f"self.conv1 = {_stem_conv(design)}"
    if design.stem_norm:
        yield f"self.bn1 = nn.BatchNorm2d({design.stem_width})"
    if design.stem_pool:
        yield "self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)"
    yield from _stages(design)
    yield from _projector(design)
    pool = "AdaptiveAvgPool2d(1)" if design.pool == "global" else f"AvgPool2d({design.pool})"
    yield f"self.pool = nn.{pool}"
    if student.head_dropout:
        yield f"self.dropout = nn.Dropout({student.head_dropout})"
    yield f"self.linear = nn.Linear({design.features}, {design.classes})"


def _stem_conv(design: Design) -> str:
    """Return the source of the stem's convolution: a call of `nn.Conv2d` if it has a bias or an
    even kernel size, else a call of the generated `conv`.
    """
    strided = f", stride={design.stem_stride}" if design.stem_stride != 1 else ""
    sizes = f"{IMAGE_CHANNELS}, {design.stem_width}, {design.stem_kernel}{strided}"
    padding = (design.stem_kernel - 1) // 2
    if design.stem_norm and design.stem_kernel % 2:
        return f"conv({sizes})"
    padded = f", padding={padding}" if padding else ""
    return f"nn.Conv2d({sizes}{padded}{', bias=False' if design.stem_norm else ''})"


def _stages(design: Design) -> Iterator[str]:
    inputs = design.stem_width
    for stage, outputs in enumerate(design.channels):
        named = [f"{name}={values[stage]}" for name, values in _stage_arguments(design).items()]
        arguments = [str(inputs), str(outputs), f"blocks={design.blocks[stage]}", *named]
        yield f"self.layer{stage + 1} = layer({', '.join(arguments)})"
        inputs = outputs


def _projector(design: Design) -> Iterator[str]:
    """Yield the source of SimKD's projector: three convolutions to the teacher's width.

    Its layers have the same names as in `students.resnet`.
    """
    if design.projector_width is None:
        return
    inner = design.projector_width // design.projector_factor
    yield "self.projector = nn.Sequential("
    for inputs, outputs, kernel in (
        (design.channels[-1], inner, 1),
        (inner, inner, 3),
        (inner, design.projector_width, 1),
    ):
        yield f"    conv({inputs}, {outputs}, {kernel}),"
        yield f"    nn.BatchNorm2d({outputs}),"
        yield "    nn.ReLU(),"
    yield ")"


def _renormalising(scale: Sequence[float], shift: Sequence[float]) -> Iterator[str]:
    """Yield the source of the buffers that renormalise the input before the stem.

    They cannot be folded into the stem's convolution: its padding adds zeros after normalisation.
    """
    yield "# From the grader's mean and std to those of the training images. Not saved."
    for name, values in (("scale", scale), ("shift", shift)):
        yield f"{name} = torch.tensor([{_numbers(values)}]).view(3, 1, 1)"
        yield f'self.register_buffer("{name}", {name}, persistent=False)'


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.9g}" if value % 1 else f"{value:.1f}" for value in values)
