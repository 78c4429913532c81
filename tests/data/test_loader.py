"""Which rows a process sees, and that a batch is a function of (view, sample)."""

import numpy as np
import pytest
import torch

from distill.data.augment import Crop, Flip
from distill.data.images import ImageSet
from distill.data.loader import Loader, Slice, fits, share
from distill.data.mix import Cutmix, Mixup

CPU = torch.device("cpu")
N, BATCH = 100, 24


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
    return ImageSet(pixels, np.arange(N) % 10, tuple("abcdefghij"))


def loader(images: ImageSet, part: Slice | None = None, **changes: object) -> Loader:
    settings = {
        "batch_size": BATCH,
        "seed": 5,
        "crop": Crop(4),
        "flip": Flip(),
        "mixup": Mixup(prob=0.4),
        "cutmix": Cutmix(prob=0.4),
        "device": CPU,
    }
    return Loader(images, part=part or Slice(), **(settings | changes))  # type: ignore[arg-type]


def batch(loader: Loader, step: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Sample index, mixed image and mixed targets of this process's rows of a step."""
    rows = []
    for view, indices in loader.batches(step):
        plain = loader.augment(view, indices), loader.one_hot(indices)
        rows.append((indices, *loader.mix(view, indices, *plain)))
    return rows


def by_sample(batches) -> dict[int, tuple[bytes, bytes]]:  # type: ignore[no-untyped-def]
    return {
        int(i): (x.numpy().tobytes(), y.numpy().tobytes())
        for indices, images, targets in batches
        for i, x, y in zip(indices, images, targets, strict=True)
    }


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 3), (4, 2)])
def test_the_global_batch_does_not_depend_on_processes_or_accumulation(
    images: ImageSet, processes: int, accumulate: int
) -> None:
    for step in (0, 3, 7):
        whole = by_sample(batch(loader(images), step))
        parts = [
            by_sample(batch(loader(images, Slice(rank, processes, accumulate)), step))
            for rank in range(processes)
        ]
        assert sum(map(len, parts)) == BATCH
        assert {k: v for part in parts for k, v in part.items()} == whole


def test_a_step_can_be_replayed_alone_and_in_any_order(images: ImageSet) -> None:
    straight = loader(images)
    sequence = [by_sample(batch(straight, step)) for step in range(9)]
    for step in (8, 0, 5):
        assert by_sample(batch(loader(images), step)) == sequence[step]
    assert sequence[0] != sequence[4]  # step 0 of another view


def test_an_epoch_visits_each_sample_at_most_once_and_drops_the_rest(images: ImageSet) -> None:
    ours = loader(images)
    assert ours.steps_per_epoch == 4
    visited = [int(i) for step in range(4) for indices, _, _ in batch(ours, step) for i in indices]
    assert len(visited) == len(set(visited)) == 96
    assert visited != [
        int(i) for step in range(4, 8) for indices, _, _ in batch(ours, step) for i in indices
    ]


def test_a_sample_looks_the_same_in_batches_of_another_size(images: ImageSet) -> None:
    large = by_sample(batch(loader(images, batch_size=N), 0))
    small = by_sample(b for step in range(4) for b in batch(loader(images), step))
    assert small.items() <= large.items()


def test_pixels_and_targets_carry_the_same_share_of_the_partner(images: ImageSet) -> None:
    flat = ImageSet(
        np.broadcast_to((np.arange(N) * 2)[:, None, None, None], (N, 3, 32, 32)).astype(np.uint8),
        np.arange(N),
        tuple(map(str, range(N))),
    )
    ((_, mixed, targets),) = batch(loader(flat), 0)
    # Each image is one grey of its own number, so its mean is the mean of its targets' greys.
    greys = torch.arange(N).float() * 2 / 255
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ greys, atol=1e-5)
    assert (targets.max(dim=1).values < 0.999).float().mean() > 0.4
    assert torch.allclose(targets.sum(dim=1), torch.ones(BATCH))


def test_without_mixing_the_targets_are_the_labels(images: ImageSet) -> None:
    plain = loader(images, mixup=None, cutmix=None)
    ((indices, pixels, targets),) = batch(plain, 0)
    assert torch.equal(targets.argmax(dim=1), torch.from_numpy(images.labels)[indices])
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_set_in_host_memory_gives_the_same_batches(images: ImageSet) -> None:
    on_host = loader(images, resident=False)
    assert by_sample(batch(on_host, 2)) == by_sample(batch(loader(images), 2))


def test_a_set_smaller_than_a_batch_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="100 training images are less than one batch of 101"):
        loader(images, batch_size=101)


def test_everything_fits_on_the_host() -> None:
    assert fits(1 << 60, CPU)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_to_evaluate_hold_each_sample_once(images: ImageSet, processes: int) -> None:
    shares = [share(images, rank, processes)[1] for rank in range(processes)]
    assert sorted(torch.cat(shares).tolist()) == sorted(images.labels.tolist())


@pytest.mark.gpu
def test_batches_are_equal_on_cpu_and_gpu(images: ImageSet) -> None:
    on_gpu = loader(images, device=torch.device("cuda"))
    for (_, x, y), (_, gx, gy) in zip(batch(loader(images), 1), batch(on_gpu, 1), strict=True):
        assert torch.allclose(x, gx.cpu(), atol=1e-7)
        assert torch.allclose(y, gy.cpu(), atol=1e-7)
