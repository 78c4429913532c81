"""Device and precision, as they are chosen where there is no GPU to ask."""

import pytest
import torch

from distill import recipe as recipes
from distill.engine import build


def test_the_cpu_is_taken_where_accelerate_is_told_to_or_nothing_else_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert not build._on_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert build._on_cpu()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert build._on_cpu()


@pytest.mark.parametrize(
    ("device", "has_bf16", "precision"),
    [("cpu", True, "fp32"), ("mps", True, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp16")],
)
def test_the_native_precision_is_what_the_device_in_use_has(
    monkeypatch, device, has_bf16, precision
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert build._native_precision(torch.device(device)) == precision


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_cpu_run_on_a_machine_with_a_gpu_is_fp32_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    opened = build.accelerator(recipes.load("kd").recipe)  # precision auto
    assert (opened.device.type, opened.mixed_precision) == ("cpu", "no")


def test_float32_is_not_shortened_for_measuring() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert build.measuring_accelerator().mixed_precision == "no"
    assert not torch.backends.cudnn.allow_tf32
