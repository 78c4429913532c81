"""Digests and fingerprints, against the definition written out with the standard library."""

from hashlib import sha256

import numpy as np

from distill.data.image_set import ImageSet, subset


def some(n: int = 7, n_classes: int = 3, seed: int = 0) -> ImageSet:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % n_classes
    return ImageSet(images, labels, tuple(f"class {c}" for c in range(n_classes)))


def definition(image: np.ndarray, label: int) -> bytes:
    interleaved = [int(image[c, y, x]) for y in range(32) for x in range(32) for c in range(3)]
    return sha256(bytes([label, *interleaved])).digest()


def test_digest_is_sha256_of_label_and_rows() -> None:
    images = some()
    expected = [definition(i, int(n)) for i, n in zip(images.images, images.labels, strict=True)]
    assert images.digests == expected
    assert images.fingerprint == sha256(b"".join(sorted(expected))).hexdigest()


def test_digests_do_not_depend_on_chunk_size() -> None:
    images = some(1003)
    assert images.digests[-1] == definition(images.images[-1], int(images.labels[-1]))
    assert len(set(images.digests)) == 1003


def test_a_label_above_255_takes_two_bytes() -> None:
    image = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    names = tuple(map(str, range(300)))
    images = ImageSet(image, np.array([258], dtype=np.int64), names)
    assert images.digests == [sha256(b"\x02\x01" + bytes(3072)).digest()]


def test_the_fingerprint_forgets_the_order_and_nothing_else() -> None:
    images = some()
    turned = subset(images, np.arange(7)[::-1])
    assert turned.fingerprint == images.fingerprint
    relabelled = ImageSet(images.images, (images.labels + 1) % 3, images.class_names)
    assert relabelled.fingerprint != images.fingerprint
    pixel = images.images.copy()
    pixel[3, 1, 4, 5] ^= 1
    assert ImageSet(pixel, images.labels, images.class_names).fingerprint != images.fingerprint
    assert subset(images, range(6)).fingerprint != images.fingerprint


def test_subset_keeps_order_labels_and_all_class_names() -> None:
    images = some()
    part = subset(images, [5, 0])
    assert (part.images == images.images[[5, 0]]).all()
    assert part.images.transpose(0, 2, 3, 1).flags.c_contiguous, "channels last in memory"
    assert part.labels.tolist() == [2, 0]
    assert part.class_names == images.class_names
    assert part.n_classes == 3


def test_a_subset_knows_the_digests_of_its_images() -> None:
    images = some()
    unasked = subset(images, [5, 0])
    assert "digests" not in vars(unasked)
    assert unasked.digests == [images.digests[5], images.digests[0]]
    assert vars(subset(images, [5, 0]))["digests"] == unasked.digests


def test_an_empty_subset_is_a_set() -> None:
    part = subset(some(), [])
    assert part.images.shape == (0, 3, 32, 32)
    assert part.digests == []
