"""The Wide ResNet: parameters, outputs and initial weights."""

import pytest
import torch

from distill.errors import UserError
from distill.models import cost
from networks.by_name import build
from teachers.wrn import WideResNet
from teachers.wrn_cost import WrnDesign


def by_formula(depth, widen, classes):
    """Weights of table 1 of the paper: batch norms stand before each convolution and at the end."""
    total, inputs = 3 * 16 * 9, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


# The paper's tables print them in millions, 36.5 for WRN-28-10 and 2.2 for WRN-40-2.
@pytest.mark.parametrize(
    ("depth", "widen", "parameters"),
    [(28, 10, 36_479_194), (16, 2, 691_674), (40, 2, 2_243_546), (10, 1, None)],
)
def test_parameters(depth, widen, parameters):
    with torch.device("meta"):
        net = WideResNet(depth, widen)

    found = sum(p.numel() for p in net.parameters())
    assert found == by_formula(depth, widen, classes=10)
    assert parameters in (found, None)


@pytest.mark.parametrize(("depth", "widen", "classes"), [(28, 10, 10), (16, 2, 100), (10, 1, 10)])
def test_the_closed_form_counts_what_is_built(depth, widen, classes):
    with torch.device("meta"):
        net = WideResNet(depth, widen, classes=classes).eval()
    design = WrnDesign(depth, widen, classes)

    assert design.parameters == sum(p.numel() for p in net.parameters())
    assert design.macs == cost.count_macs(net)
    assert design.summary == f"WRN-{depth}-{widen}"


def test_classes_change_only_the_head():
    with torch.device("meta"):
        net = WideResNet(16, 2, classes=100)

    assert sum(p.numel() for p in net.parameters()) == 691_674 + 90 * 129


def test_stages_halve_the_map_and_double_the_channels():
    net = WideResNet(10, 1).eval()
    shapes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _m, _i, maps: shapes.append(tuple(maps.shape)))

    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_widening_block_shares_its_activated_input_with_skip():
    block = WideResNet(10, 2).eval().stages[0][0]
    maps = torch.randn(2, 16, 4, 4)
    active = torch.relu(block.norm1(maps))
    hidden = block.conv2(torch.relu(block.norm2(block.conv1(active))))

    torch.testing.assert_close(block(maps), block.skip(active) + hidden)


def test_other_blocks_have_identity_skips():
    block = WideResNet(16, 1).eval().stages[1][1]
    torch.nn.init.zeros_(block.conv2.weight)
    maps = torch.randn(2, 32, 4, 4)

    assert block.skip is None
    assert torch.equal(block(maps), maps)


def test_dropout_acts_between_the_convolutions_in_training_only():
    net = WideResNet(10, 1, dropout=0.5)
    images = torch.rand(2, 3, 8, 8)

    assert not torch.equal(net(images), net(images))
    assert torch.equal(net.eval()(images), net(images))


def test_the_network_normalises_inside():
    net = WideResNet(10, 1)
    grey = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1).expand(1, 3, 4, 4)

    torch.testing.assert_close(net.normalize(grey), torch.zeros(1, 3, 4, 4))
    assert "normalize.mean" in net.state_dict()


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (27, "depth = 27 is not 6n [+] 4; the next are 22 and 28"),
        (4, "depth = 4 is not 6n [+] 4; the next are 10 and 16"),
        (-1, "depth = -1 is not 6n [+] 4; the next are 10 and 16"),
    ],
)
def test_a_depth_off_the_pattern_is_refused(depth, message):
    with pytest.raises(UserError, match=message):
        WideResNet(depth)


def test_all_faults_come_in_one_message():
    with pytest.raises(UserError, match="depth = 29 is not") as caught:
        WideResNet(29, 0, dropout=1.5)

    assert "widen = 0 must be 1 or more" in str(caught.value)
    assert "dropout = 1.5 must be at least 0 and below 1" in str(caught.value)


def test_wrn_by_name():
    net = build("wrn", depth=10, widen=2, dropout=0.3, classes=4)

    assert isinstance(net, WideResNet)
    assert net.stages[0][0].dropout.p == 0.3
    assert net.head.out_features == 4


def test_wrn_name_with_a_size_is_refused():
    with pytest.raises(UserError, match='network = "wrn/28-10" is unknown; did you mean wrn-28-10'):
        build("wrn/28-10")
