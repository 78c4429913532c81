"""The held-out part: disjoint, exhaustive, balanced, nested, and blind to the container's order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.image_set import ImageSet, subset
from distill.data.sources import synthetic
from distill.data.split_by_content import split
from distill.errors import UserError


def some(counts: list[int], seed: int = 0) -> ImageSet:
    """`counts[c]` distinct images of class c, in mixed order."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    images = np.zeros((len(labels), 3, 32, 32), dtype=np.uint8)
    images[:, :, :4] = draw.integers(0, 256, (len(labels), 3, 4, 32), dtype=np.uint8)
    return ImageSet(images, labels, tuple(f"c{c}" for c in range(len(counts))))


def per_class(images: ImageSet, indices: np.ndarray) -> list[int]:
    return np.bincount(images.labels[indices], minlength=images.n_classes).tolist()


sets = st.builds(some, st.lists(st.integers(10, 25), min_size=1, max_size=4), st.integers(0, 99))
shares = st.floats(0.06, 0.9)


@settings(max_examples=40, deadline=None)
@given(sets, shares)
def test_parts_are_disjoint_exhaustive_balanced_and_ordered(images: ImageSet, share: float) -> None:
    train, held_out = split(images, holdout=share)
    assert train.dtype == held_out.dtype == np.int64
    assert sorted([*train, *held_out]) == list(range(len(images.labels)))
    for found, of_class in zip(
        per_class(images, held_out), per_class(images, [*train, *held_out]), strict=True
    ):
        assert abs(found - share * of_class) <= 0.5 + 1e-9
    for part in (train, held_out):
        digests = [images.digests[i] for i in part]
        assert digests == sorted(digests)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(sets, shares, st.randoms(use_true_random=False))
def test_file_order_does_not_change_the_sequence(images: ImageSet, share: float, random) -> None:
    order = list(range(len(images.labels)))
    random.shuffle(order)
    turned = subset(images, order)
    for options in ({}, {"train_images": images.n_classes}):
        for one, other in zip(
            split(images, holdout=share, **options),
            split(turned, holdout=share, **options),
            strict=True,
        ):
            assert (images.images[one] == turned.images[other]).all()
            assert (images.labels[one] == turned.labels[other]).all()


@settings(max_examples=40, deadline=None)
@given(sets, shares, shares)
def test_smaller_share_is_contained_in_larger(images: ImageSet, a: float, b: float) -> None:
    small, large = (set(split(images, holdout=share)[1].tolist()) for share in sorted((a, b)))
    assert small <= large


def test_first_digests_of_each_class_are_separated() -> None:
    images = some([10, 20])
    _, held_out = split(images, holdout=0.2)
    expected = {
        i
        for c, n in ((0, 2), (1, 4))
        for i in sorted(np.flatnonzero(images.labels == c), key=lambda i: images.digests[i])[:n]
    }
    assert set(held_out.tolist()) == expected


def test_no_share_holds_out_nothing() -> None:
    images = some([3, 4])
    train, held_out = split(images, holdout=0)
    assert held_out.shape == (0,)
    assert held_out.dtype == np.int64
    assert sorted(train) == list(range(7))


def test_equal_images_are_on_one_side() -> None:
    pairs = np.zeros((8, 3, 32, 32), dtype=np.uint8)
    pairs[:, 0, 0, 0] = [0, 1, 2, 3, 0, 1, 2, 3]
    images = ImageSet(pairs, np.zeros(8, dtype=np.int64), ("all",))
    train, held_out = split(images, holdout=0.125)  # one of eight, and so its twin
    assert len(held_out) == 2 and len(train) == 6
    assert not {images.digests[i] for i in held_out} & {images.digests[i] for i in train}


def test_fewer_training_images_are_shared_among_the_classes() -> None:
    images = some([20, 20, 20])
    train, held_out = split(images, holdout=0.1, train_images=11)
    assert per_class(images, train) == [4, 4, 3]
    assert per_class(images, held_out) == [2, 2, 2]
    whole, held_of_all = split(images, holdout=0.1)
    assert (held_out == held_of_all).all()
    for c, n in enumerate((4, 4, 3)):  # the first by digest of those that are left
        of_class = [i for i in whole.tolist() if images.labels[i] == c]
        assert [i for i in train.tolist() if images.labels[i] == c] == of_class[:n]


def test_the_procedural_set_is_split_evenly() -> None:
    images = synthetic.draw("train")
    train, held_out = split(images, holdout=0.1)
    assert per_class(images, held_out) == [60] * 10
    assert per_class(images, train) == [540] * 10
    fewer, _ = split(images, holdout=0.1, train_images=1000)
    assert per_class(images, fewer) == [100] * 10


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match=rf"data.holdout = {share} is not a share in \[0, 1\)"):
        split(some([5]), holdout=share)


def test_classes_without_separated_images_are_named() -> None:
    expected = (
        r"2 faults in data.holdout = 0.1 of 26 images:\n"
        r"  class 'c0' has no held-out image: of 3 images 0 held out, 3 left to train on\n"
        r"  class 'c2' has no held-out image: of 3 images"
    )
    with pytest.raises(UserError, match=expected):
        split(some([3, 20, 3]), holdout=0.1)


def test_a_class_without_a_training_image_is_named() -> None:
    expected = "class 'c1' has no training image: of 1 image 1 held out, 0 left to train on"
    with pytest.raises(UserError, match=expected):
        split(some([10, 1]), holdout=0.8)


def test_an_empty_class_is_named() -> None:
    with pytest.raises(UserError, match="class 'c1' has no training image: of 0 images 0 held out"):
        split(some([10, 0]), holdout=0)


def test_too_few_training_images() -> None:
    expected = (
        r"class 'c1' has too few training images: of 10 images 1 held out, 9 left to train on, "
        r"12 requested\nChoose another share"
    )
    with pytest.raises(UserError, match=expected):
        split(some([20, 10]), holdout=0.1, train_images=24)


def test_more_training_images_than_exist_is_one_fault() -> None:
    with pytest.raises(UserError) as caught:
        split(some([20, 20, 20]), holdout=0.1, train_images=60)
    assert str(caught.value) == (
        "data.train_images = 60 is more than the 54 images that are left to train on: of 60 images "
        "6 are held out (data.holdout = 0.1).\n"
        "Type --set data.train_images=54 or less, or leave it out for all."
    )


@pytest.mark.parametrize("n", [0, -5])
def test_zero_training_images_are_refused(n: int) -> None:
    expected = r"class 'c0' has no training image: of 5 images 0 held out, 5 left.*, 0 requested"
    with pytest.raises(UserError, match=expected):
        split(some([5, 5]), holdout=0, train_images=n)


def test_fewer_training_images_than_classes() -> None:
    with pytest.raises(UserError, match="class 'c2' has no training image: .* 0 requested"):
        split(some([5, 5, 5]), holdout=0, train_images=2)
