"""Networks by name: published sizes, taps, training and eval modes, messages."""

import re

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.models import cost
from distill.models.features import FeatureExtractor, tap_points
from distill.recipe.describe_network import describe
from distill.recipe.schema import Student
from networks import by_name, network_catalogue
from students.resnet import Block, ResNet

# Parameters for 100 classes. Those of the CRD benchmark's students and teachers are in its authors'
# code; the tables of later papers (Zhao et al., CVPR 2022, arXiv 2203.08679) round them:
# resnet20 0.28M, resnet32 0.47M, resnet56 0.86M, resnet110 1.74M, resnet8x4 1.23M,
# resnet32x4 7.43M, WRN-16-2 0.70M, WRN-40-1 0.57M, WRN-40-2 2.26M, vgg8 3.97M, vgg13 9.46M,
# MobileNetV2 0.81M, ShuffleNet-V1 0.95M, ShuffleNet-V2 1.36M, ResNet50 23.71M.
PUBLISHED = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet50": 23_705_252,
}


def on_meta(network: str, classes: int = 10) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return by_name.build(network, classes=classes)


def student(network: str) -> Student:
    return Student(network=network, max_params=100_000_000)


@pytest.mark.parametrize("network", PUBLISHED)
def test_parameters_are_the_published_ones(network: str) -> None:
    assert cost.count_parameters(on_meta(network, 100)) == PUBLISHED[network]


@pytest.mark.long
@pytest.mark.parametrize(
    "network", [*PUBLISHED, "resnet20x4", "wrn-16-1", "resnet101", "resnet152"]
)
@pytest.mark.parametrize("classes", [10, 7])
def test_description_matches_built_network(network: str, classes: int) -> None:
    net, described = on_meta(network, classes), describe(student(network), classes)
    assert described is not None
    assert described.parameters == described.trainable == cost.count_parameters(net)
    assert described.macs == cost.count_macs(net.eval())
    assert described.taps == tuple(tap_points(net))


@pytest.mark.long
@pytest.mark.parametrize("size", [16, 48, 64, 128])
@pytest.mark.parametrize(
    "network",
    ["resnet20", "wrn-16-1", *sorted(network_catalogue.FIXED.keys() - {"resnet101", "resnet152"})],
)
def test_macs_of_other_image_sizes(network: str, size: int) -> None:
    described = describe(student(network), size=size)
    assert described is not None
    assert described.macs == cost.count_macs(on_meta(network, 10).eval(), size)


def test_macs_of_odd_image_sizes() -> None:
    described = describe(student("wrn-16-1"), size=50)
    assert described is not None
    assert described.macs == cost.count_macs(on_meta("wrn-16-1", 10).eval(), 50)
    assert describe(student("vgg8"), size=50) is None  # not proportional to the pixels


@pytest.mark.long
@pytest.mark.parametrize("network", ["resnet20", "wrn-16-2", *network_catalogue.FIXED])
def test_taps_shrink_towards_the_logits(network: str) -> None:
    """Two images give logits and maps whose size never grows; `features` is what the head reads."""
    net = by_name.build(network, classes=7).eval()
    taps = list(tap_points(net))
    with torch.no_grad():
        output = FeatureExtractor(net, taps)(torch.rand(2, 3, 32, 32))
    sizes = [output.taps[tap].shape[-1] for tap in taps[:-1]]
    assert output.logits.shape == (2, 7)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] in (2, 4, 8)
    head = net.get_submodule("head")
    assert torch.equal(head(output.taps["features"]), output.logits)


@pytest.mark.parametrize("network", ["resnet20", "vgg8", "mobilenetv2", "shufflenetv1"])
def test_a_step_changes_every_weight(network: str) -> None:
    torch.manual_seed(0)
    net = by_name.build(network, classes=7)
    nn.functional.cross_entropy(net(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a batch norm has no effect.
    assert [name for name in without if not re.fullmatch(r"(stem|stages).*\.\d+\.bias", name)] == []


def test_named_residual_network_begins_with_scale_one() -> None:
    """As published; a network that is described by keys begins with zeros."""
    named = by_name.build("resnet8")
    assert isinstance(named, ResNet)
    for net, scale in ((named, 1.0), (ResNet(named.design), 0.0)):
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        assert [block.last_norm.weight.unique().tolist() for block in blocks] == [[scale]] * 3


def test_initial_weights_of_vgg_follow_the_benchmark() -> None:
    """Convolutions: variance 2 / (9 outputs); linear layers: standard deviation 0.01; no bias."""
    torch.manual_seed(0)
    net = by_name.build("vgg8", classes=100)
    last = [module for module in net.modules() if isinstance(module, nn.Conv2d)][-1]
    head = net.get_submodule("head")
    assert last.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)  # type: ignore[operator]
    assert last.bias is not None and not last.bias.any() and not head.bias.any()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet21", "is unknown; did you mean resnet32, resnet20, resnet14"),
        ("wrn_40_2", "is unknown; did you mean wrn-40-2"),
        ("wrn-17-2", "has depth 17, which wrn does not have; allowed: 10, 16, 22, 28"),
        ("wrn-16-0", "has width 0"),
        ("ShuffleNetV2", "is unknown; did you mean shufflenetv2"),
        ("timm/", "is unknown"),
    ],
)
def test_wrong_name_names_similar_ones(network: str, message: str) -> None:
    with pytest.raises(UserError, match=f'network = "{network}" {message}'):
        by_name.build(network)


def test_dropout_belongs_to_wide_residual_networks() -> None:
    assert by_name.build("wrn-10-1", dropout=0.3).dropout == 0.3
    with pytest.raises(UserError, match=r"dropout = 0.3 belongs to wrn; vgg8 takes 0"):
        by_name.build("vgg8", dropout=0.3)
