"""What a training computes, against arithmetic done by hand."""

import pytest

from distill.components.build_network import build_network
from distill.errors import UnsuitableRecipe
from distill.models import cost
from distill.recipe import recipes
from distill.recipe.count_parameters import count_networks
from distill.training import flops
from distill.training.flops import ImageCounts, NetworkCost


def images(spec: str, *overrides: str, n: int = 50_000) -> ImageCounts | None:
    return flops.count_images(recipes.load(spec, overrides).recipe, n)


def test_fast_teacher_takes_2e15_operations() -> None:
    recipe = recipes.load("fast_teacher").recipe
    role = "teacher" if recipe.student is None else "student"
    network = flops.network_cost(recipe, role, 10)
    # results/README.md: 9,918,786 parameters, 452.0 M multiply-accumulates, 2.17e15 by 6 MACs.
    assert network.parameters == 9_918_786
    assert network.macs == pytest.approx(452.0e6, rel=1e-3)
    seen = flops.count_images(recipe, 50_000)
    assert seen == ImageCounts(trained=16 * 195 * 256, cached=0, passes=0, validated=0)
    assert flops.training_flop(seen, network, None) == 6 * 798_720 * network.macs
    assert flops.training_flop(seen, network, None) == pytest.approx(2.17e15, rel=0.01)


def test_a_wide_resnet_has_the_published_operations() -> None:
    """5.2 G for a WRN-28-10 on 32x32 pixels (docs/cluster.md), 36.5 M parameters (its paper)."""
    network = flops.network_cost(recipes.load("teacher_wrn").recipe, "teacher", 10)
    assert (network.name, network.parameters) == ("WRN-28-10", 36_479_194)
    assert network.macs == pytest.approx(5.2433e9, rel=1e-4)


@pytest.mark.parametrize("spec", ["kd", "simkd", "fast_kd", "nyu2022_2111", "nyu2023_og"])
def test_network_without_memory_counts_as_its_design_does(spec: str) -> None:
    resolved = recipes.load(spec)
    counted, planned = (
        flops.network_cost(resolved.recipe, "student", 10),
        count_networks(spec),
    )
    assert (counted.name, counted.parameters) == (planned["network"], planned["parameters"])
    assert counted.macs == planned["macs"]


def test_network_without_memory_counts_as_real_one() -> None:
    recipe = recipes.load("teacher_wrn+two_cores").recipe
    net = build_network(recipe, "teacher", 10).eval()
    counted = flops.network_cost(recipe, "teacher", 10)
    assert counted == NetworkCost("WRN-16-2", cost.count_parameters(net), cost.count_macs(net))


def test_more_classes_may_be_over_the_budget() -> None:
    recipe = recipes.load("kd", ["student.max_params=4_700_000"]).recipe
    with pytest.raises(UnsuitableRecipe, match="with 100 classes"):
        flops.network_cost(recipe, "student", 100)


def test_teacher_counts_once_per_image() -> None:
    # 45,000 images in batches of 512: 87 steps, 44,544 images an epoch.
    seen = images("kd", "train.epochs=30")
    assert seen == ImageCounts(trained=30 * 44_544, cached=0, passes=1, validated=30 * 5_000)
    assert seen is not None and seen.teacher_forwards == 30 * 44_544
    student, teacher = NetworkCost("s", 1, 100), NetworkCost("t", 1, 7_000)
    assert flops.training_flop(seen, student, teacher) == 30 * 44_544 * (600 + 14_000)


def test_cached_logits_count_once_a_view() -> None:
    seen = images("kd+cached_targets", "train.epochs=50", "cache.views=20")
    assert seen is not None
    assert (seen.cached, seen.teacher_forwards) == (30 * 44_544, 20 * 44_544)
    every = images("kd+cached_targets", "train.epochs=50")
    assert every is not None and every.cached == 0


def test_last_partial_batch_counts_if_it_is_trained() -> None:
    every = "train.drop_last=false"
    seen = images("kd", "train.epochs=30", every)
    assert seen == ImageCounts(trained=30 * 45_000, cached=0, passes=1, validated=30 * 5_000)
    cached = images("kd+cached_targets", "train.epochs=50", "cache.views=20", every)
    assert cached is not None and cached.cached == 30 * 45_000


def test_teacher_counts_while_a_term_reads_it() -> None:
    def passes(spec: str, *overrides: str) -> float:
        return flops.teacher_passes_per_image(recipes.load(spec, overrides).recipe)

    assert passes("student_alone") == 0
    assert passes("soft_mix") == 2  # both images of a pair
    assert passes("fitnet") == pytest.approx(1)  # a hint for 0.3 of the training, then kd
    assert passes("kd", "loss.kd.when.begin=0.25") == 0.75
    # soft_mix takes kd's term out; with it the teacher sees three images for one.
    assert passes("soft_mix", "loss.kd.when.end=0.5") == 2.5


def test_fewer_images_and_both_networks_validated() -> None:
    seen = images("kd_cutmix+two_cores", "train.epochs=2", "train.validate_both=true")
    assert seen == ImageCounts(trained=2 * 117 * 128, cached=0, passes=1, validated=2 * 2 * 2_000)


def test_budget_in_minutes_has_no_number_of_images() -> None:
    assert images("kd", "train.minutes=3.0") is None
