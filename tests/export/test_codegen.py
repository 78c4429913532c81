"""The written file against the network it describes: `exec` it, load strictly, compare logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.export.codegen import ACTIVATIONS, StudentSpec, generate, generated_weight_name
from distill.export.project1 import renormalise
from students.design import Design
from students.normalize_images import MEAN, STD
from students.resnet import ACTIVATIONS as BUILT
from students.resnet import ResNet

REPORTS = Path(__file__).parents[1] / "students" / "architectures.json"
IMAGES = torch.rand(2, 3, 32, 32)
NORMALISED = (IMAGES - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
ODD = Design.of(
    stages=4,
    blocks=[1, 2, 3, 1],
    channels=[4, 4, 6, 8],
    kernel=[5, 3, 3, 1],
    skip_kernel=[1, 3, 1, 5],
    stem_kernel=7,
    stem_width=5,
    stem_pool=True,
    stage_strides=[1, 2, 1, 2],
    convs_per_block=3,
    pool=2,
    classes=7,
    projector_width=12,
)
POOLED = Design.of(
    stages=3,
    blocks=[1, 0, 2],
    channels=[4, 6, 5],
    kernel=[3, 5, 1],
    stem_width=3,
    stage_strides=[2, 1, 3],
    convs_per_block=3,
    downsample="pool",
)
WHITENED = Design.of(
    stages=2,
    blocks=1,
    width=4,
    downsample="pool",
    stem_kernel=2,
    stem_init="whiten",
    stem_norm=False,
    stem_frozen=True,
)
RESNET_9 = Design.of(
    stages=3, blocks=[1, 0, 1], channels=[4, 8, 16], stem_width=2, downsample="pool"
)
FLAT = Design.of(stages=1, blocks=2, width=4)
TWO = Design.of(stages=2, blocks=1, width=4)


def network(student: StudentSpec) -> ResNet:
    """With statistics and scales that are not those of the first step: all must be carried over."""
    torch.manual_seed(0)
    rates = (student.activation, student.block_dropout, student.head_dropout)
    net = ResNet(student.design, *rates)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    net.normalize.mean.copy_(torch.tensor(MEAN).view(1, 3, 1, 1))
    return net.eval()


def built(student: StudentSpec, net: ResNet) -> torch.nn.Module:
    """What the file defines, with the weights of `net`."""
    names: dict = {}
    exec(generate(student, "A network."), names)
    model = names["project1_model"]()
    state = {generated_weight_name(name): tensor for name, tensor in net.state_dict().items()}
    state.pop(None)
    model.load_state_dict(state, strict=True)
    return model.eval()


def plain(design: Design, activation="relu", block=0.0, head=0.0) -> StudentSpec:
    return StudentSpec(design, activation, block, head, renormalise=None)


def same(student: StudentSpec) -> None:
    net = network(student)
    model = built(student, net)
    assert sum(p.numel() for p in model.parameters()) == student.design.parameters
    with torch.no_grad():
        assert torch.equal(model(NORMALISED), net(IMAGES))


def shrunk(spec: dict) -> StudentSpec:
    """A row of the reports' table with few channels: its shape, blocks and kernels are the same."""
    small = {k: v for k, v in spec.items() if k not in ("activation", "block_dropout")}
    if small.get("channels"):
        small["channels"] = [max(1, n // 64) for n in small["channels"]]
    else:
        small["width"] = 2
    small |= {key: 3 for key in ("stem_width",) if small.get(key)}
    rates = spec.get("activation", "relu"), spec.get("block_dropout", 0.0)
    return plain(Design.of(**small), *rates)


@pytest.mark.long
def test_networks_of_the_reports_are_written_exactly():
    rows = json.loads(REPORTS.read_text())["rows"]
    students = list(dict.fromkeys(shrunk(row["spec"]) for row in rows))
    print(f"{len(rows)} rows, {len(students)} shapes")
    assert len(students) > 20
    for student in students:
        same(student)


@pytest.mark.parametrize("activation", BUILT)
@pytest.mark.parametrize(
    "design",
    [ODD, FLAT, POOLED, RESNET_9, WHITENED],
    ids=["odd", "flat", "pooled", "resnet9", "whitened"],
)
def test_odd_design_is_written_exactly(design, activation):
    assert set(BUILT) == set(ACTIVATIONS)
    same(plain(design, activation, 0.2, 0.3))


@pytest.mark.long
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_design_is_written_as_it_is(data):
    stages = data.draw(st.integers(1, 4))

    def each(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=stages, max_size=stages))

    design = Design.of(
        stages=stages,
        blocks=each([1, 2, 3]),
        channels=each([2, 3, 4]),
        kernel=each([1, 3, 5]),
        skip_kernel=each([1, 3]),
        stage_strides=each([1, 2]),
        stem_kernel=data.draw(st.sampled_from([None, 1, 5])),
        stem_width=data.draw(st.sampled_from([None, 2, 3])),
        stem_stride=data.draw(st.sampled_from([1, 2])),
        stem_pool=data.draw(st.booleans()),
        convs_per_block=data.draw(st.sampled_from([2, 3])),
        pool=data.draw(st.sampled_from(["global", 1])),
        projector_width=data.draw(st.sampled_from([None, 4])),
    )
    same(plain(design, data.draw(st.sampled_from(list(BUILT))), 0.1, 0.1))


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_stem_is_written_as_it_is(kernel, norm, stride):
    same(
        plain(
            Design.of(
                stages=1, blocks=1, width=4, stem_kernel=kernel, stem_norm=norm, stem_stride=stride
            )
        )
    )


@pytest.mark.long
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_pooled_design_is_written_as_it_is(data):
    stages = data.draw(st.integers(1, 3))

    def each(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=stages, max_size=stages))

    design = Design.of(
        stages=stages,
        blocks=[*each([0, 1, 2])[1:], 1],
        channels=each([2, 3, 4]),
        kernel=each([1, 3, 5]),
        stage_strides=each([1, 2, 3]),
        stem_width=data.draw(st.sampled_from([None, 2, 3])),
        convs_per_block=data.draw(st.sampled_from([2, 3])),
        projector_width=data.draw(st.sampled_from([None, 4])),
        downsample="pool",
    )
    same(plain(design, data.draw(st.sampled_from(list(BUILT))), 0.1, 0.1))


def test_dropout_drops_where_it_dropped():
    student = plain(ODD, "relu", 0.4, 0.4)
    net = network(student)
    model = built(student, net)
    outputs = []
    for mode, images in ((model, NORMALISED), (net, IMAGES)):
        torch.manual_seed(1)
        outputs.append(mode.train()(images))

    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], net.eval()(IMAGES))


@pytest.mark.parametrize(
    ("student", "there", "not_there"),
    [
        (plain(FLAT), ["kernel // 2"], ["stride)", "skip", "Dropout", "import torch\n", "maxpool"]),
        (plain(ODD, "tanh", 0.1), ["import torch\n", "skip_kernel=5", "projector"], ["F.", "x *"]),
        (plain(TWO), ["conv(inputs, outputs, 1, stride)"], ["kernel="]),
        (
            plain(RESNET_9),
            ["nn.MaxPool2d(2)", "layer(2, 4, blocks=1)", "BasicBlock(outputs)", "blocks=0"],
            ["stride)", "skip", "kernel=", "pool="],
        ),
        (plain(WHITENED), ["nn.Conv2d(3, 24, 2)", "F.relu(self.conv1(x))"], ["padding="]),
        (plain(FLAT, "celu"), ["F.celu(x, 0.075)", "celu(out)"], ["F.relu"]),
        (plain(POOLED), ["nn.MaxPool2d(pool)", "pool=3, kernel=1)"], ["skip", "stride)"]),
    ],
    ids=["flat", "odd", "two", "resnet9", "whitened", "celu", "pooled"],
)
def test_only_what_the_design_uses_is_written(student, there, not_there):
    text = generate(student, "A network.")

    assert [part for part in there if part not in text] == []
    assert [part for part in not_there if part in text] == []


def test_other_normalisations_become_a_step_before_the_stem():
    net = network(plain(TWO))
    net.normalize.mean.copy_(torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
    net.normalize.std.copy_(torch.tensor([0.25, 0.3, 0.2]).view(1, 3, 1, 1))
    student = StudentSpec(TWO, "relu", 0.0, 0.0, renormalise(net))
    model = built(student, net)

    with torch.no_grad():
        torch.testing.assert_close(model(NORMALISED), net(IMAGES), rtol=1e-5, atol=1e-5)
        forgotten = built(plain(TWO), net)(NORMALISED)
        assert not torch.allclose(forgotten, net(IMAGES), atol=1e-2)
    assert "scale" not in model.state_dict()
    assert renormalise(network(plain(TWO))) is None


def test_the_file_is_as_ruff_leaves_it(tmp_path):
    for i, student in enumerate(
        (
            plain(FLAT),
            plain(ODD, "tanh", 0.1, 0.2),
            plain(Design.of(stages=3, blocks=[4, 4, 3], width=64), "gelu"),
            StudentSpec(ODD, "relu", 0.0, 0.0, ([1.0, 1.5, 0.1234567], [0.0, 2.0, -1.25])),
            plain(POOLED, "relu", 0.1),
            plain(RESNET_9, "tanh"),
            plain(WHITENED, "celu"),
            plain(Design.of(stages=1, blocks=1, width=4, stem_kernel=2)),
        )
    ):
        (tmp_path / f"{i}.py").write_text(generate(student, "A network.\n\nOf few numbers."))
    for command in (
        ["format", "--check", "--line-length=88"],
        ["format", "--check", "--line-length=100"],
        ["check", "--select=E,F,W,I"],
    ):
        ruff = Path(sys.executable).with_name("ruff")
        done = subprocess.run(
            [ruff, *command, "--isolated", tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
