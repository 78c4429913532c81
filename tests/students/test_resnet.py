"""The student network built from a design."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import UserError
from students.design import Design
from students.normalize_images import MEAN, STD, Normalize
from students.resnet import ResNet

ROWS = json.loads((Path(__file__).parent / "architectures.json").read_text())["rows"]
NOT_OF_THE_SHAPE = ("activation", "block_dropout")
TINY = Design.of(stages=2, blocks=2, width=4)


def built(spec, device="meta"):
    """The network of a row, on the meta device: shapes without memory."""
    shape = {key: value for key, value in spec.items() if key not in NOT_OF_THE_SHAPE}
    extras = {key: spec[key] for key in NOT_OF_THE_SHAPE if key in spec}
    with torch.device(device):
        return ResNet(Design.of(**shape), **extras)


def counted_macs(net, image_size=32):
    """Multiply-accumulates of one image, counted by hooks while it runs."""
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        macs += module.weight[0].numel() * output.numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    return macs


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['source'][:3]}-{row['name']}")
def test_networks_of_the_reports_have_stated_parameters(row):
    stated = row.get("parameters_of_described_network", row["parameters"])

    assert sum(p.numel() for p in built(row["spec"]).parameters()) == stated


@pytest.mark.parametrize("name", ["table1-N6", "table5-P3", "table6-K3", "og.resnet", "ResBlock"])
def test_macs_match_a_forward_pass(name):
    spec = next(row["spec"] for row in ROWS if row["name"] == name)

    assert Design.of(**spec).macs == counted_macs(built(spec))


@pytest.mark.parametrize("image_size", [32, 33, 48])
def test_features_fit_other_image_sizes(image_size):
    design = Design.of(
        stages=3, blocks=1, width=4, stem_stride=2, stem_pool=True, pool=2, image_size=image_size
    )
    with torch.device("meta"):
        net = ResNet(design)

    assert counted_macs(net, image_size) == design.macs


POOLED = [
    {"stages": 3, "blocks": [1, 0, 1], "channels": [8, 16, 32], "stem_width": 4},
    {"stages": 3, "blocks": 1, "channels": [8, 16, 12], "stem_width": 24},
    {"stages": 2, "blocks": [0, 2], "width": 4, "kernel": [5, 3], "stage_strides": [1, 3]},
    {"stages": 2, "blocks": 1, "width": 4, "stem_pool": True, "convs_per_block": 3, "pool": 2},
    {"stages": 1, "blocks": 1, "width": 4, "stem_stride": 2, "projector_width": 6},
]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_whitened_stem_matches_its_design(kernel, norm, frozen):
    design = Design.of(
        stages=2, blocks=1, width=4, pool=2, stem_init="whiten",
        stem_kernel=kernel, stem_norm=norm, stem_frozen=frozen,
    )  # fmt: skip
    with torch.device("meta"):
        net = ResNet(design)
    trained = [p for p in net.parameters() if p.requires_grad]

    assert sum(p.numel() for p in net.parameters()) == design.parameters
    assert sum(p.numel() for p in trained) == design.trainable
    assert counted_macs(net) == design.macs
    assert net.stem_conv.weight.requires_grad is not frozen
    assert [type(layer).__name__ for layer in net.stem] == (
        ["Conv2d", "BatchNorm2d", "ReLU"] if norm else ["Conv2d", "ReLU"]
    )


def test_stem_bias_begins_at_zero_and_is_trained():
    net = ResNet(Design.of(stages=1, blocks=1, width=4, stem_norm=False, stem_frozen=True))
    net(torch.rand(2, 3, 8, 8)).square().sum().backward()

    assert net.stem_conv.bias.eq(0).all()
    assert net.stem_conv.bias.grad.abs().min() > 0
    assert net.stem_conv.weight.grad is None


@pytest.mark.parametrize("spec", POOLED)
def test_pooled_networks_are_what_their_design_counts(spec):
    design = Design.of(**spec, downsample="pool")
    with torch.device("meta"):
        net = ResNet(design)

    assert sum(p.numel() for p in net.parameters()) == design.parameters
    assert counted_macs(net) == design.macs


def test_pooled_stage_has_its_layers_in_order():
    net = ResNet(Design.of(stages=3, blocks=[1, 0, 2], width=4, downsample="pool"))
    heads = [[type(layer).__name__ for layer in stage[0]] for stage in net.stages]

    assert heads == 3 * [["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]]
    assert [len(stage) - 1 for stage in net.stages] == [1, 0, 2]
    assert all(isinstance(block.skip, nn.Identity) for stage in net.stages for block in stage[1:])
    assert net.stages[2][2].last_norm.weight.eq(0).all()
    assert net.stages[2][0].norm.weight.eq(1).all()


def test_a_pooled_network_by_hand():
    """airbench96's group: conv, pool, norm, act, then conv, norm, act, conv, norm with a skip."""
    net = ResNet(Design.of(stages=1, blocks=1, width=4, downsample="pool"), activation="gelu")
    head, block = net.stages[0]
    nn.init.ones_(block.last_norm.weight)
    maps, gelu = torch.randn(3, 4, 8, 8), nn.functional.gelu
    one = gelu(head.norm(nn.functional.max_pool2d(head.conv(maps), 2)))
    inner = gelu(block.residual[1](block.residual[0](one)))
    by_hand = gelu(one + block.residual[5](block.residual[4](inner)))

    torch.testing.assert_close(net.stages(maps), by_hand)


def test_taps_of_pooled_network_are_those_of_design():
    design = Design.of(stages=3, blocks=[1, 0, 1], width=4, downsample="pool")
    net = ResNet(design)
    shapes = {}
    for name, module in net.tap_points.items():
        module.register_forward_hook(
            lambda _module, _inputs, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    net(torch.rand(1, 3, 32, 32))

    assert tuple(net.tap_points) == design.taps
    assert [shapes[tap] for tap in ("stem", "stages.0", "stages.1", "stages.2", "features")] == [
        (4, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4), (16,),
    ]  # fmt: skip


def test_logits_have_one_row_an_image():
    net = ResNet(Design.of(stages=3, blocks=1, width=4, pool=2, convs_per_block=3, classes=7))

    assert net(torch.rand(5, 3, 32, 32)).shape == (5, 7)


def test_the_network_normalises_and_saves_how():
    net = ResNet(TINY)
    images = torch.rand(2, 3, 8, 8)
    by_hand = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    torch.testing.assert_close(net.normalize(images), by_hand)
    assert net.state_dict()["normalize.mean"].shape == (1, 3, 1, 1)
    assert "normalize.std" in net.state_dict()
    assert not list(net.normalize.parameters())


def test_normalize_takes_other_means():
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    assert normalize(torch.ones(1, 3, 2, 2)).unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [
        ("relu", 0.0),
        ("leaky_relu", -0.01),
        ("gelu", -0.5 * (1 + math.erf(-1 / math.sqrt(2)))),
        ("tanh", math.tanh(-1)),
        ("celu", 0.075 * math.expm1(-1 / 0.075)),
        ("silu", -1 / (1 + math.e)),
    ],
)
def test_every_activation_follows_stem_and_blocks(name, at_minus_one):
    net = ResNet(TINY, activation=name)
    minus_one = torch.tensor(-1.0)
    block = net.stages[0][0]

    for activation in (net.stem[2], block.residual[3], block.activation):
        assert activation(minus_one.clone()).item() == pytest.approx(at_minus_one, abs=1e-6)


def test_each_block_begins_as_its_skip():
    block = ResNet(TINY).stages[0][1]
    maps = torch.rand(2, 4, 8, 8)

    torch.testing.assert_close(block(maps), maps)
    assert block.residual[1].weight.eq(1).all()


@pytest.mark.parametrize("spec", [{}, {"downsample": "pool"}, {"projector_width": 6}])
def test_frozen_scales_are_one_everywhere(spec):
    design = Design.of(stages=2, blocks=1, width=4, norm_scale="frozen", **spec)
    net = ResNet(design)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen = sum(norm.weight.numel() for norm in norms)

    assert all(norm.weight.eq(1).all() and not norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
    assert design.parameters - design.trainable == frozen
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == design.trainable


def test_norm_momentum_is_share_of_newest_batch():
    net = ResNet(TINY, norm_momentum=0.4)
    images = torch.rand(4, 3, 8, 8)
    maps = net.stem[0](net.normalize(images))
    net(images)

    torch.testing.assert_close(net.stem[1].running_mean, 0.4 * maps.mean((0, 2, 3)))
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.4}
    assert net.stages[0][0].last_norm.weight.requires_grad


def test_convolutions_have_the_variance_of_he():
    torch.manual_seed(0)
    conv = ResNet(Design.of(stages=2, blocks=1, width=32)).stages[1][0].residual[0]

    assert conv.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)


def test_skip_is_convolution_only_where_shape_changes():
    net = ResNet(Design.of(stages=2, blocks=2, width=4, stem_width=4))
    wide_stem = ResNet(Design.of(stages=1, blocks=1, width=4, stem_width=6))

    kinds = [type(block.skip) for stage in net.stages for block in stage]
    assert kinds == [nn.Identity, nn.Identity, nn.Sequential, nn.Identity]
    assert isinstance(wide_stem.stages[0][0].skip, nn.Sequential)


def test_block_dropout_follows_the_first_norm():
    net = ResNet(TINY, block_dropout=0.1, head_dropout=0.2)
    block = net.stages[0][0]

    kinds = [type(layer).__name__ for layer in block.residual]
    assert kinds == ["Conv2d", "BatchNorm2d", "Dropout", "ReLU", "Conv2d", "BatchNorm2d"]
    assert block.residual[2].p == 0.1
    assert net.dropout.p == 0.2


def test_dropout_acts_in_training_only():
    net = ResNet(TINY, head_dropout=0.5)
    images = torch.rand(4, 3, 8, 8)

    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_weights_have_same_names_with_and_without_dropout():
    with_dropout = ResNet(TINY, activation="gelu", block_dropout=0.3, head_dropout=0.1)

    assert list(ResNet(TINY).state_dict()) == list(with_dropout.state_dict())


def test_every_parameter_gets_a_gradient_with_taps():
    net = ResNet(TINY)
    nn.init.ones_(net.stages[0][0].last_norm.weight)
    taps = {}
    net.stages[0].register_forward_hook(
        lambda _module, _inputs, maps: taps.update(maps=maps, copy=maps.detach().clone())
    )
    net(torch.rand(2, 3, 16, 16)).square().sum().backward()

    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(taps["maps"], taps["copy"])


def test_channels_last_gives_the_same_logits():
    net = ResNet(Design.of(stages=2, blocks=1, width=4, pool=4)).eval()
    images = torch.rand(2, 3, 32, 32)
    plain = net(images)
    fast = net.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last)
    )

    torch.testing.assert_close(plain, fast)


@pytest.mark.long
def test_the_network_is_one_graph():
    explained = torch._dynamo.explain(ResNet(TINY))(torch.rand(2, 3, 8, 8))

    assert explained.graph_break_count == 0


def test_invalid_arguments_are_one_message():
    with pytest.raises(UserError, match=r'"swish" is not one of relu, leaky_relu') as caught:
        ResNet(TINY, "swish", block_dropout=1.0, head_dropout=-0.1, norm_momentum=0.0)

    assert "block_dropout = 1.0 must be at least 0 and below 1" in str(caught.value)
    assert "norm_momentum = 0.0 must be above 0 and at most 1" in str(caught.value)
    assert "head_dropout = -0.1 must be at least 0 and below 1" in str(caught.value)
