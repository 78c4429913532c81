"""The procedural set: always the same bits, balanced, distinct; colour is no cue to the class."""

import numpy as np
import pytest

from distill.data.image_set import ImageSet
from distill.data.sources import load_data_set, synthetic


@pytest.fixture(scope="module")
def train_set() -> ImageSet:
    return load_data_set.load("synthetic", "train")


@pytest.fixture(scope="module")
def other_set() -> ImageSet:
    return load_data_set.load("synthetic", "test")


def test_the_same_bits_on_every_machine(train_set: ImageSet, other_set: ImageSet) -> None:
    assert (
        train_set.fingerprint == "b80b6b13df88c5235a707ecc425a61d966fde5f8531aca6ca91d36b83fdade3b"
    )
    assert (
        other_set.fingerprint == "47e5870e268f1a6f78ca8daa0d88fa9b4904d7d5cebbf27e31113a3c1b09c498"
    )


def test_shapes_and_balance(train_set: ImageSet, other_set: ImageSet) -> None:
    for images, n in ((train_set, 6000), (other_set, 2000)):
        assert images.images.shape == (n, 3, 32, 32)
        assert images.images.dtype == np.uint8
        assert images.images.flags.c_contiguous
        assert np.bincount(images.labels).tolist() == [n // 10] * 10
    assert train_set.class_names == other_set.class_names
    assert len(set(train_set.class_names)) == 10


def test_all_images_differ(train_set: ImageSet, other_set: ImageSet) -> None:
    assert len({*train_set.digests, *other_set.digests}) == 8000


def test_check_has_nothing_to_look_for() -> None:
    load_data_set.check("synthetic")


@pytest.mark.long
def test_pixels_alone_do_not_tell_the_class(train_set: ImageSet, other_set: ImageSet) -> None:
    """Ridge regression on the pixels (in blocks of 2x2) and their squares stays near chance."""
    small = [
        images.images.reshape(-1, 3, 16, 2, 16, 2).mean(axis=(3, 5)).reshape(-1, 768) / 255 - 0.5
        for images in (train_set, other_set)
    ]
    x, x_test = (np.hstack([f, f * f, np.ones((len(f), 1))]) for f in small)
    y = np.eye(10)[train_set.labels]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    assert ((x_test @ weights).argmax(axis=1) == other_set.labels).mean() < 0.4


@pytest.mark.long
def test_colour_and_contrast_do_not_reveal_the_class(train_set: ImageSet) -> None:
    """Class means of channel mean and spread lie within chance of the mean over all."""
    flat = train_set.images.reshape(len(train_set.labels), 3, -1).astype(np.float64)
    features = np.hstack([flat.mean(axis=2), flat.std(axis=2)])
    for c in range(10):
        of_class = features[train_set.labels == c]
        error = features.std(axis=0) / np.sqrt(len(of_class))
        assert (np.abs(of_class.mean(axis=0) - features.mean(axis=0)) < 20 * error).all()


def test_outlines_of_centred_shapes() -> None:
    """Each shape holds its centre but the ring; the cross leaves out the square's corner."""
    zero, corner = np.zeros(1), np.full(1, 0.8)
    inside = {name: bool(shape(zero, zero)[0]) for name, shape in synthetic.SHAPES.items()}
    assert inside == {"disc": 1, "ring": 0, "square": 1, "cross": 1, "triangle": 1}
    at_corner = {name: bool(shape(corner, corner)[0]) for name, shape in synthetic.SHAPES.items()}
    assert at_corner == {"disc": 0, "ring": 0, "square": 1, "cross": 0, "triangle": 0}


def test_directions_lie_on_the_circle() -> None:
    cos, sin = synthetic._direction(np.random.Philox(1), 1.0)
    assert np.allclose(cos**2 + sin**2, 1)
    assert cos.min() >= 0  # half a turn; a bar looks the same after the other half
    assert sin.min() < -0.9
    assert sin.max() > 0.9
