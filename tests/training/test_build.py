"""Device, precision and norms, as they are chosen where there is no GPU to ask."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distill.components.build_accelerator import (
    _is_on_cpu,
    _native_precision,
    build_accelerator,
    evaluation_accelerator,
)
from distill.components.build_network import build_network, convert_sync_bn
from distill.components.data_pipeline import augment_schedule, build_loader, build_pipeline
from distill.data.augment.auto_augment import TrivialAugment
from distill.data.augment.crop_flip import Crop, Flip
from distill.data.augment.erase import Cutout
from distill.data.image_set import ImageSet
from distill.data.loader import Loader
from distill.errors import UserError
from distill.recipe import recipes


def test_cpu_is_used_on_request_or_alone(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert not _is_on_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert _is_on_cpu()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert _is_on_cpu()


@pytest.mark.parametrize(
    ("device", "has_bf16", "precision"),
    [("cpu", True, "fp32"), ("mps", True, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp16")],
)
def test_native_precision_is_what_device_in_use_has(
    monkeypatch, device, has_bf16, precision
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert _native_precision(torch.device(device)) == precision


@pytest.mark.usefixtures("fresh_accelerate")
def test_cpu_run_beside_a_gpu_is_fp32(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    opened = build_accelerator(recipes.load("kd").recipe)  # precision auto
    assert (opened.device.type, opened.mixed_precision) == ("cpu", "no")


def test_float32_is_not_shortened_for_measuring() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert evaluation_accelerator().mixed_precision == "no"
    assert not torch.backends.cudnn.allow_tf32


def on(device: str, processes: int) -> Any:
    """What an accelerator says of itself."""
    return SimpleNamespace(device=torch.device(device), num_processes=processes)


def loader_of(n: int, processes: int, *overrides: str) -> Loader:
    """The loader of the first of so many processes, of `n` grey images."""
    recipe = recipes.load("tiny", ["train.drop_last=false", *overrides]).recipe
    images = ImageSet(np.zeros((n, 3, 32, 32), np.uint8), np.arange(n) % 10, tuple("abcdefghij"))
    return build_loader(
        recipe, images, SimpleNamespace(**vars(on("cpu", processes)), process_index=0)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "processes", "options", "message"),
    [
        (
            65, 1, [],
            "train.drop_last = false trains a last batch of 1 image in each epoch, one for each "
            "part of processes x accumulate = 1 x 1, and batch norm needs more than one image.\n"
            "Type --set train.batch_size=31 or --set train.drop_last=true.",
        ),
        (
            66, 2, [],
            "train.drop_last = false trains a last batch of 2 images in each epoch, one for each "
            "part of processes x accumulate = 2 x 1, and batch norm needs more than one image.\n"
            "Type --set train.batch_size=30 or --set train.drop_last=true.",
        ),
        (
            70, 2, ["train.accumulate=2"],
            "train.drop_last = false trains a last batch of 6 images in each epoch, which cannot "
            "be divided equally over processes x accumulate = 2 x 2.\n"
            "Type --set train.drop_last=true, or choose processes x accumulate so that it divides "
            "the 70 training images.",
        ),
    ],
)  # fmt: skip
def test_unfit_last_batch_is_refused_with_a_remedy(
    n: int, processes: int, options: list[str], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        loader_of(n, processes, *options)
    assert str(refused.value) == message
    for remedy in re.findall(r"train.(?:batch_size|drop_last)=\w+", message):
        accepted = loader_of(n, processes, *options, remedy)
        assert all(accepted.images_in(k) > processes for k in range(accepted.steps_per_epoch))


@pytest.mark.parametrize(("n", "processes", "last"), [(64, 2, 32), (68, 2, 4), (66, 1, 2)])
def test_fitting_last_batch_is_accepted(n: int, processes: int, last: int) -> None:
    accepted = loader_of(n, processes)
    assert accepted.images_in(accepted.steps_per_epoch - 1) == last


def test_synchronised_norms_have_the_same_parameters() -> None:
    recipe = recipes.load("kd", ["train.sync_batch_norm=true"]).recipe
    net = build_network(recipe, "student", 10)
    names, weights = list(net.state_dict()), list(net.parameters())
    plain = convert_sync_bn(net, recipes.load("kd").recipe, on("cuda", 2))
    alone = convert_sync_bn(net, recipe, on("cuda", 1))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in [*plain.modules(), *alone.modules()])
    shared = convert_sync_bn(net, recipe, on("cuda", 2))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in shared.modules())
    assert list(shared.state_dict()) == names
    assert all(a is b for a, b in zip(shared.parameters(), weights, strict=True))


def test_synchronised_norms_without_gpus_are_refused() -> None:
    recipe = recipes.load("kd", ["train.sync_batch_norm=true"]).recipe
    with pytest.raises(
        UserError, match=r"the 2 processes compute on the CPU: .* needs GPUs.\n"
    ) as e:
        convert_sync_bn(nn.BatchNorm2d(2), recipe, on("cpu", 2))
    assert "--set train.sync_batch_norm=false" in str(e.value)


def test_trivial_augment_ingredient_is_the_authors_setting() -> None:
    """Their CIFAR-10 configuration of WRN-40-2: `fixed_standard`, crop, flip, cutout 16."""
    made = build_pipeline(recipes.load("kd+trivial_augment").recipe)
    assert (made.crop, made.flip) == (Crop(4), Flip(0.5))
    assert made.operations == (TrivialAugment("standard", before_crop=True), Cutout(16, 1.0))
    overrides = ["augment.trivial.space=wide", "augment.trivial.before_crop=false"]
    made = build_pipeline(recipes.load("kd+trivial_augment", overrides).recipe)
    assert made.operations[0] == TrivialAugment("wide", before_crop=False)


@pytest.mark.parametrize(
    ("epochs", "share", "on"),
    [
        (10, 0.05, 9),  # round(9.5) is 10: half to even
        (1, 0.05, 1),
        (2, 0.05, 1),
        (3, 0.01, 2),
        (100, 0.05, 95),
        (12, 0.25, 9),
        (10, 0.0, 10),
        (1, 0.0, 1),
    ],
)
def test_a_clean_end_is_an_epoch_at_least(epochs: int, share: float, on: int) -> None:
    """Operations and mixing each end before the last of several epochs."""
    made = recipes.load("kd", [f"augment.off_last={share}", f"mix.off_last={share}"]).recipe
    schedule = augment_schedule(made, epochs)
    assert (schedule.operations_end, schedule.mixing_end) == (on, on)


def test_the_last_of_ten_epochs_is_clean() -> None:
    made = recipes.load("kd+cutmix+cutout+clean_end").recipe
    schedule, whole = augment_schedule(made, 10), build_pipeline(made)
    clean = [
        not p.mixes and not p.operations for p in (schedule.pipeline(whole, e) for e in range(10))
    ]
    assert clean == [False] * 9 + [True]
