"""Multiply-accumulates against the closed form; times that are times."""

import pytest
import torch
from torch import nn

from distill.models import cost
from students.design import Design
from students.resnet import ResNet


@pytest.mark.parametrize(
    "spec",
    [
        {"stages": 2, "blocks": 1, "width": 4},
        {"stages": 3, "blocks": [1, 2, 1], "width": 4, "skip_kernel": 3, "stem_stride": 2},
    ],
)
def test_what_is_counted_is_design_s_closed_form(spec) -> None:
    design = Design.of(**spec)
    net = ResNet(design).eval()
    assert cost.count_macs(net) == design.macs
    assert cost.count_parameters(net) == design.parameters


def test_a_convolution_and_a_linear_layer_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 7)
    )
    assert cost.count_macs(net) == 16 * 16 * 4 * 3 * 9 + 4 * 16 * 16 * 7


def test_latency_names_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ENOUGH_S", 0.0)
    seen: list[int] = []

    class Counts(nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return super().forward(images)

    found = cost.measure_latency(Counts(3, 4, 3))
    assert found["batch_128"] > found["batch_1"] > 0
    assert seen == [1] * 20 + [128] * 20, "ten to warm up and ten that count"
    assert (found["device"], found["precision"]) == ("cpu", "float32")
    assert found["threads"] == torch.get_num_threads()
