"""Named maps of a network, beside its logits."""

import re

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.models.features import FeatureExtractor, tap_points, tap_shapes
from networks.by_name import build
from students.design import Design
from students.resnet import ResNet
from teachers.ensemble import Ensemble

IMAGES = torch.rand(2, 3, 32, 32)
DESIGN = Design.of(stages=2, blocks=1, width=4)
PROJECTED = Design.of(stages=2, blocks=1, width=4, projector_width=12, projector_factor=3)


@pytest.mark.parametrize("design", [DESIGN, PROJECTED])
def test_a_student_has_the_taps_of_its_design(design: Design) -> None:
    assert tuple(tap_points(ResNet(design))) == design.taps


@pytest.mark.parametrize(
    "net",
    [ResNet(DESIGN), ResNet(PROJECTED), build("wrn", depth=10, widen=1)],
    ids=["student", "projected", "wrn"],
)
def test_features_are_pooled_maps_and_what_head_reads(net: nn.Module) -> None:
    logits, taps = FeatureExtractor(net.eval(), ["maps", "features"])(IMAGES)
    assert torch.allclose(taps["maps"].mean((2, 3)), taps["features"], atol=1e-6)
    assert torch.equal(net.get_submodule("head")(taps["features"]), logits)
    assert torch.equal(net(IMAGES), logits)


def test_wide_resnet_maps_are_activated_stages_not() -> None:
    _, taps = FeatureExtractor(build("wrn", depth=10, widen=1).eval(), ["stages.2", "maps"])(IMAGES)
    assert taps["maps"].min() >= 0 > taps["stages.2"].min()


def test_only_requested_features_are_returned() -> None:
    tapped = FeatureExtractor(ResNet(DESIGN), ["stages.1", "stem", "stages.1"])
    assert tap_shapes(tapped, 32) == {"stem": (4, 32, 32), "stages.1": (8, 16, 16)}
    assert FeatureExtractor(ResNet(DESIGN))(IMAGES).taps == {}


def test_measuring_the_network_itself_keeps_nothing() -> None:
    net = ResNet(DESIGN)
    tapped = FeatureExtractor(net, ["stem"])
    net(IMAGES)
    assert tapped.captured is None
    tapped(IMAGES)
    assert tapped.captured is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "net",
    [ResNet(PROJECTED), ResNet(DESIGN, activation="leaky_relu"), build("wrn", depth=10, widen=1)],
    ids=["student", "leaky", "wrn"],
)
def test_tap_is_not_changed_after_it_was_read(net: nn.Module, training: bool) -> None:
    """Activations work in place: never on what a tap has read."""
    names = tuple(tap_points(net))
    when_read: dict[str, torch.Tensor] = {}
    for name, module in tap_points(net).items():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: when_read.update({name: output.clone()})
        )
    _, taps = FeatureExtractor(net.train(training), names)(IMAGES)
    assert all(torch.equal(taps[name], when_read[name]) for name in names)


def test_a_tap_carries_its_gradient() -> None:
    net = ResNet(DESIGN)
    FeatureExtractor(net, ["stem"])(IMAGES).taps["stem"].sum().backward()
    assert net.stem[0].weight.grad is not None and net.head.weight.grad is None


def test_shapes_leave_the_network_as_it_is() -> None:
    net = ResNet(DESIGN).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    tap_shapes(FeatureExtractor(net, ["maps"]), 32)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_timm_names_its_own_maps() -> None:
    net = build("timm/resnet18")
    assert {"layer1", "layer4", "features"} <= set(tap_points(net))
    found = tap_shapes(FeatureExtractor(net, ["layer4", "features"]), 32)
    assert found == {"layer4": (512, 1, 1), "features": (512,)}


def test_unknown_tap_is_refused_with_existing_ones() -> None:
    allowed = "stem, stages.0, stages.1, maps, features"
    with pytest.raises(UserError, match=re.escape(f"ResNet has no map stages.7; it has {allowed}")):
        FeatureExtractor(ResNet(DESIGN), ["stem", "stages.7"])
    with pytest.raises(UserError, match="Ensemble has no map stem; it has none to tap"):
        FeatureExtractor(Ensemble([ResNet(DESIGN)]), ["stem"])


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_taps() -> None:
    tapped = FeatureExtractor(ResNet(DESIGN).eval(), ["stages.0", "features"])
    plain = tapped(IMAGES)
    tapped.compile()
    compiled = tapped(IMAGES)
    assert torch.allclose(plain.logits, compiled.logits, atol=1e-5)
    for name, tap in plain.taps.items():
        assert torch.allclose(tap, compiled.taps[name], atol=1e-5)
