"""Which rows a process sees, and that a batch is a function of (view, sample)."""

from dataclasses import is_dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from distill.data.augment.affine import Affine, Rotate, Translate
from distill.data.augment.augment_schedule import AugmentSchedule, Pipeline
from distill.data.augment.auto_augment import RandAugment, TrivialAugment
from distill.data.augment.color import ColourJitter
from distill.data.augment.crop_flip import Crop, Flip, resize
from distill.data.augment.erase import Cutout
from distill.data.augment.mixup_cutmix import Cutmix, Mixup
from distill.data.augment.ricap import Ricap
from distill.data.image_set import ImageSet
from distill.data.loader import Loader, Shard, View, fits, share

CPU = torch.device("cpu")
N, BATCH = 100, 24


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
    return ImageSet(pixels, np.arange(N) % 10, tuple("abcdefghij"))


WHOLE = Pipeline(Crop(4), Flip(), mixup=Mixup(prob=0.4), cutmix=Cutmix(prob=0.4))


def loader(images: ImageSet, part: Shard | None = None, **changes: object) -> Loader:
    settings = {"batch_size": BATCH, "seed": 5, "pipeline": WHOLE, "device": CPU}
    return Loader(images, shard=part or Shard(), **(settings | changes))  # type: ignore[arg-type]


def batch(loader: Loader, step: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Sample index, mixed image and mixed targets of this process's rows of a step."""
    rows = []
    for view, indices in loader.batches(step):
        drawn = loader.batch(view, indices)
        rows.append((indices, drawn.images, drawn.targets))
    return rows


def by_sample(batches) -> dict[int, tuple[bytes, bytes]]:  # type: ignore[no-untyped-def]
    return {
        int(i): (x.numpy().tobytes(), y.numpy().tobytes())
        for indices, images, targets in batches
        for i, x, y in zip(indices, images, targets, strict=True)
    }


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 3), (4, 2)])
def test_global_batch_is_independent_of_processes(
    images: ImageSet, processes: int, accumulate: int
) -> None:
    for step in (0, 3, 7):
        whole = by_sample(batch(loader(images), step))
        parts = [
            by_sample(batch(loader(images, Shard(rank, processes, accumulate)), step))
            for rank in range(processes)
        ]
        assert sum(map(len, parts)) == BATCH
        assert {k: v for part in parts for k, v in part.items()} == whole


def test_steps_can_be_replayed_in_any_order(images: ImageSet) -> None:
    straight = loader(images)
    sequence = [by_sample(batch(straight, step)) for step in range(9)]
    for step in (8, 0, 5):
        assert by_sample(batch(loader(images), step)) == sequence[step]
    assert sequence[0] != sequence[4]  # step 0 of another view


def test_epoch_visits_each_sample_at_most_once(images: ImageSet) -> None:
    ours = loader(images)
    assert ours.steps_per_epoch == 4
    visited = [int(i) for step in range(4) for indices, _, _ in batch(ours, step) for i in indices]
    assert len(visited) == len(set(visited)) == 96
    assert visited != [
        int(i) for step in range(4, 8) for indices, _, _ in batch(ours, step) for i in indices
    ]


def test_last_partial_batch_is_trained_on_request(images: ImageSet) -> None:
    """100 images in batches of 24: 4 full ones, and one of 4 with the rest."""
    dropped, ours = loader(images), loader(images, drop_last=False)
    assert (dropped.steps_per_epoch, ours.steps_per_epoch, ours.full_batches) == (4, 5, 4)
    assert [ours.images_in(step) for step in range(10)] == 2 * [24, 24, 24, 24, 4]
    assert {dropped.images_in(step) for step in range(10)} == {24}
    for epoch in range(2):
        steps = [batch(ours, 5 * epoch + k) for k in range(5)]
        visited = [int(i) for ((indices, _, _),) in steps for i in indices]
        assert sorted(visited) == list(range(N)), "each image once"
        for k in range(4):  # the full batches are those of a run without the last one
            assert by_sample(steps[k]) == by_sample(batch(dropped, 4 * epoch + k))


def test_multiple_of_batch_size_has_no_partial_batch(images: ImageSet) -> None:
    ours = loader(images, drop_last=False, batch_size=20)
    assert ours.steps_per_epoch == ours.full_batches == 5
    assert [ours.images_in(step) for step in range(6)] == [20] * 6


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_partial_batch_is_independent_of_processes(
    images: ImageSet, processes: int, accumulate: int
) -> None:
    for step in (4, 9):
        whole = by_sample(batch(loader(images, drop_last=False), step))
        parts = [
            by_sample(
                batch(loader(images, Shard(rank, processes, accumulate), drop_last=False), step)
            )
            for rank in range(processes)
        ]
        assert [len(part) for part in parts] == [4 // processes] * processes
        assert {k: v for part in parts for k, v in part.items()} == whole


def test_sample_looks_same_in_batches_of_another_size(images: ImageSet) -> None:
    large = by_sample(batch(loader(images, batch_size=N), 0))
    small = by_sample(b for step in range(4) for b in batch(loader(images), step))
    assert small.items() <= large.items()


def test_pixels_and_targets_carry_same_share_of_partner(images: ImageSet) -> None:
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
    plain = loader(images, pipeline=Pipeline(Crop(4), Flip()))
    ((indices, pixels, targets),) = batch(plain, 0)
    assert torch.equal(targets.argmax(dim=1), torch.from_numpy(images.labels)[indices])
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_set_in_host_memory_gives_same_batches(images: ImageSet) -> None:
    on_host = loader(images, resident=False)
    assert by_sample(batch(on_host, 2)) == by_sample(batch(loader(images), 2))


def test_a_set_smaller_than_a_batch_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="100 training images are less than one batch of 101"):
        loader(images, batch_size=101)


@pytest.mark.long
def test_cifar10_and_its_draws_take_quarter_gib() -> None:
    """GPU memory beside the networks: the set, the labels, one view with everything on."""
    n = 50_000
    everything = Pipeline(
        Crop(4),
        Flip(),
        operations=(Translate(4), Affine(), Rotate(), RandAugment(), ColourJitter(), Cutout()),
        mixup=Mixup(0.2),
        cutmix=Cutmix(0.2),
        ricap=Ricap(0.2),
    )
    images = ImageSet(np.zeros((n, 3, 32, 32), np.uint8), np.arange(n) % 10, tuple("abcdefghij"))
    on_device = Loader(
        images, batch_size=512, seed=0, pipeline=everything, device=CPU, shard=Shard()
    )
    view = on_device.view(0)
    n_bytes = sum(
        tensor.nbytes for tensor in [on_device.pixels, on_device.targets, *tensors_of(view)]
    )
    assert n * 3 * 32 * 32 < n_bytes < 2**30 / 4


def tensors_of(part: object) -> list[torch.Tensor]:
    """Every tensor of a view, however deep."""
    if isinstance(part, torch.Tensor):
        return [part]
    if isinstance(part, dict):
        return [tensor for each in part.values() for tensor in tensors_of(each)]
    if isinstance(part, tuple):
        return [tensor for each in part for tensor in tensors_of(each)]
    inner = vars(part).values() if is_dataclass(part) else ()
    return [tensor for each in inner for tensor in tensors_of(each)]


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


class Inverted:
    """An operation that draws nothing much and is easily seen."""

    before_crop = False

    def draw(self, seed, view, n, size):  # type: ignore[no-untyped-def]
        return {"used": torch.arange(n) % 2 == view % 2}

    def __call__(self, pixels, drawn):  # type: ignore[no-untyped-def]
        return torch.where(drawn["used"][:, None, None, None], 255 - pixels, pixels)


def test_operations_follow_crop_and_flip_on_partners(images: ImageSet) -> None:
    plain = Pipeline(Crop(4), Flip())
    with_op = replace(plain, operations=(Inverted(),))
    view, rows = loader(images, pipeline=plain).batches(0)[0]
    before = loader(images, pipeline=plain).augment(view, rows)
    ours = loader(images, pipeline=with_op)
    ((view, rows),) = ours.batches(0)
    after = ours.augment(view, rows)
    even = (rows % 2 == 0)[:, None, None, None]
    assert torch.allclose(after, torch.where(even, 1 - before, before), atol=1e-6)
    mixing = loader(images, pipeline=replace(with_op, mixup=Mixup()))
    ((view, rows),) = mixing.batches(0)
    own, partner = (mixing.augment(view, r) for r in (rows, view.partners(rows)))
    mixed, _ = mixing.mix(view, rows, own, mixing.one_hot(rows))
    lam = view.weight_of_own_label(rows)[:, :, None, None]
    assert torch.allclose(mixed, lam * own + (1 - lam) * partner, atol=1e-6)


def pictured(images: ImageSet, view: View, row: int) -> torch.Tensor:
    """Sample `row` cropped after reflection and flipped by torchvision, as the view has it."""
    padded = tv.pad(torch.from_numpy(images.images[row]), [4], padding_mode="reflect")
    place = view.crop_flip
    cut = tv.crop(padded, int(place.top[row]), int(place.left[row]), 32, 32)
    return tv.horizontal_flip(cut) if place.mirrored[row] else cut


@pytest.mark.parametrize("resident", [True, False])
def test_trivial_then_crop_flip_cutout(images: ImageSet, resident: bool) -> None:
    trivial, cutout = TrivialAugment(), Cutout(16)
    ours = loader(images, pipeline=Pipeline(Crop(4), Flip(), (trivial, cutout)), resident=resident)
    ((view, rows),) = ours.batches(0)
    changed = trivial(torch.from_numpy(images.images), view.drawn[0]).numpy()
    for which in (rows, rows.flip(0)):  # of partners too: any samples in any order
        got = ours.augment(view, which)
        assert got.is_contiguous(memory_format=torch.channels_last)
        for row, image in zip(which.tolist(), got, strict=True):
            placed = pictured(replace(images, images=changed), view, row)
            hidden = cutout(placed[None], {"box": view.drawn[1]["box"][row : row + 1]})[0]
            assert torch.equal(image, hidden.float() / 255)
    assert len(set(view.drawn[0]["operation"][rows].tolist())) > 5


def test_trivial_can_act_after_crop_and_flip(images: ImageSet) -> None:
    trivial = TrivialAugment(before_crop=False)
    ours = loader(images, pipeline=Pipeline(Crop(4), Flip(), (trivial,)))
    ((view, rows),) = ours.batches(0)
    for row, image in zip(rows.tolist(), ours.augment(view, rows), strict=True):
        own = {name: of[row : row + 1] for name, of in view.drawn[0].items()}
        expected = trivial(pictured(images, view, row)[None], own)[0]
        assert torch.equal(image, expected.float() / 255)


def test_operations_and_mixing_end_on_schedule(images: ImageSet) -> None:
    whole = replace(WHOLE, operations=(Inverted(),))
    ours = loader(images, pipeline=whole, schedule=AugmentSchedule(operations_end=2, mixing_end=1))
    seen = [ours.view(epoch) for epoch in range(3)]
    assert [bool(view.drawn) for view in seen] == [True, True, False]
    assert [view.mix is not None for view in seen] == [True, False, False]
    assert seen[2].pipeline == Pipeline(Crop(4), Flip())
    early = Pipeline(Crop(4), Flip(), (TrivialAugment(), Cutout()))
    ours = loader(images, pipeline=early, schedule=AugmentSchedule(operations_end=1))
    assert [len(ours.view(epoch).drawn) for epoch in range(2)] == [2, 0]
    assert ours.view(1).pipeline == Pipeline(Crop(4), Flip())


SIDES = ((0.0, 20), (0.5, 26), (0.75, None))


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 10, 100])
def test_epoch_has_last_side_whose_share_has_come(epochs: int) -> None:
    for shares in (("0", "0.5", "0.75"), ("0", "0.07", "0.29"), ("0", "0.1", "0.7")):
        sides = tuple(zip(map(float, shares), (20, 26, None), strict=True))
        schedule = AugmentSchedule(sides=sides, epochs=epochs)
        for epoch in range(epochs):  # in exact fractions: 7/100 has come at 0.07
            come = sum(Fraction(share) <= Fraction(epoch, epochs) for share in shares)
            assert schedule.side(epoch) == (20, 26, None)[come - 1]
    assert AugmentSchedule(epochs=epochs).side(0) is None


def test_images_are_resized_last_and_targets_stay(images: ImageSet) -> None:
    full, ours = loader(images), loader(images, schedule=AugmentSchedule(sides=SIDES, epochs=4))
    for epoch, side in enumerate((20, 20, 26, 32)):
        step = epoch * ours.steps_per_epoch
        ((rows, seen, targets),) = batch(ours, step)
        ((same_rows, mixed, same_targets),) = batch(full, step)
        assert torch.equal(rows, same_rows) and torch.equal(targets, same_targets)
        assert seen.shape == (BATCH, 3, side, side)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        expected = mixed if side == 32 else resize(mixed, side)
        assert torch.equal(seen, expected), "at full size nothing is touched"


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_resized_batches_do_not_depend_on_processes(images: ImageSet, processes: int) -> None:
    schedule = AugmentSchedule(sides=((0.0, 20),))
    whole = by_sample(batch(loader(images, schedule=schedule), 0))
    parts: dict[int, tuple[bytes, bytes]] = {}
    for rank in range(processes):
        parts |= by_sample(batch(loader(images, Shard(rank, processes), schedule=schedule), 0))
    assert parts == whole


def test_views_come_again(images: ImageSet) -> None:
    ours = loader(images, schedule=AugmentSchedule(views=2))
    steps = ours.steps_per_epoch
    assert by_sample(batch(ours, 0)) == by_sample(batch(ours, 2 * steps))
    assert by_sample(batch(ours, 0)) != by_sample(batch(ours, steps))


def test_four_images_in_one_and_their_labels(images: ImageSet) -> None:
    ours = loader(images, pipeline=Pipeline(ricap=Ricap(prob=0.5)))
    ((view, rows),) = ours.batches(0)
    plain, labels = ours.augment(view, rows), ours.one_hot(rows)
    mixed, targets = ours.mix(view, rows, plain, labels)
    work = view.ricap
    for b, row in enumerate(rows.tolist()):
        if not work.used[row]:
            assert torch.equal(mixed[b], plain[b]) and torch.equal(targets[b], labels[b])
            continue
        four = [row, *work.partner[row].tolist()]
        expected = sum(s * ours.targets[i] for s, i in zip(work.share[row], four, strict=True))
        assert torch.allclose(targets[b], expected)
        h, w = work.boundary[row].tolist()
        top, left = work.corner[row, 3].tolist()
        last = ours.augment(view, torch.tensor([four[3]]))[0]
        assert torch.equal(mixed[b, :, h:, w:], last[:, top : top + 32 - h, left : left + 32 - w])


def test_alternating_flips_show_both_sides(images: ImageSet) -> None:
    ours = loader(images, pipeline=Pipeline(flip=Flip(0.5, alternate=True)))
    rows = torch.arange(N)
    sides = [ours.augment(ours.view(epoch), rows) for epoch in range(3)]
    assert torch.equal(sides[0], sides[2])
    assert torch.equal(sides[0], sides[1].flip(-1))
    mirrored = ours.view(0).crop_flip.mirrored.float().mean()
    assert 0.3 < mirrored < 0.7
