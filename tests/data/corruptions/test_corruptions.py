"""Each corruption against its formula, its statistics or Pillow; all of them as functions."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from distill.data import rng
from distill.data.corruptions import blur, digital, noise, weather
from distill.data.corruptions.catalogue import CORRUPTIONS, SEVERITIES, corrupt, to_pixels
from distill.data.rng import Stream
from distill.data.sources import load_data_set

N = 24
SAMPLES = np.arange(N)
# Their constants trade one strength for another: more smoothing of the glass but as many passes,
# more local displacement but less of the corners.
NOT_MONOTONE = {"glass_blur", "elastic_transform"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    pixels = load_data_set.load("synthetic", "test").images[:N]
    assert pixels.std() > 20
    return pixels


def grey(value: int, n: int = 4) -> np.ndarray:
    return np.full((n, 3, 32, 32), value, dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_function_of_its_sample_alone(name: str, images: np.ndarray) -> None:
    before = images.copy()
    whole = corrupt(images, name, 3, samples=SAMPLES)
    assert (whole.shape, whole.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before), "what was given must be left alone"
    for rank in range(3):  # as three processes share them
        mine = corrupt(images[rank::3], name, 3, samples=SAMPLES[rank::3])
        assert np.array_equal(mine, whole[rank::3])
    assert len(corrupt(images[:0], name, 3, samples=SAMPLES[:0])) == 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_severer_the_farther_from_the_image(name: str, images: np.ndarray) -> None:
    clean = images.astype(float)
    far = [
        np.abs(corrupt(images, name, severity, samples=SAMPLES) - clean).mean()
        for severity in SEVERITIES
    ]
    assert far[0] > 0.2 and max(far) < 100, far
    if name not in NOT_MONOTONE:
        assert far == sorted(far), far


@pytest.mark.parametrize(
    "name",
    ["gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog",
     "elastic_transform"],
)  # fmt: skip
def test_another_seed_or_sample_draws_otherwise(name: str, images: np.ndarray) -> None:
    alike = np.repeat(images[:1], 2, axis=0)
    one = corrupt(alike, name, 3, samples=np.array([0, 1]))
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one, corrupt(alike, name, 3, samples=np.array([0, 1]), seed=1))


def test_a_chunk_is_no_border() -> None:
    many = grey(100, n=300)
    whole = corrupt(many, "gaussian_noise", 1, samples=np.arange(300))
    last = corrupt(many[290:], "gaussian_noise", 1, samples=np.arange(290, 300))
    assert np.array_equal(whole[290:], last)


# Noise: the laws


@pytest.mark.parametrize(
    ("severity", "std"), [(1, 0.04), (2, 0.06), (3, 0.08), (4, 0.09), (5, 0.10)]
)
def test_gaussian_noise_has_its_standard_deviation(severity: int, std: float) -> None:
    found = corrupt(grey(128, 16), "gaussian_noise", severity, samples=np.arange(16)) + 0.5
    # Rounding down takes half a level from the mean.
    assert found.mean() == pytest.approx(128, abs=0.5)
    assert found.std() == pytest.approx(255 * std, rel=0.02)


@pytest.mark.parametrize("photons", [50, 500])
def test_photons_are_counted_by_poisson_s_law(photons: int) -> None:
    means = np.arange(256) / 255 * photons
    table = noise.poisson_distribution(means)
    k = np.arange(table.shape[1])
    assert np.allclose(table[:, :-1], stats.poisson.cdf(k[:-1], means[:, None]), atol=1e-10)
    assert 1 - stats.poisson.cdf(k[-1], photons) < 1e-12, "the table is long enough"


def test_shot_noise_counts_photons_by_brightness() -> None:
    draw = lambda n: rng.sample_words((0, 0), Stream.CORRUPTION, np.arange(16), n)  # noqa: E731
    for level in (0, 51, 128):
        counts = 75 * noise.shot_noise(grey(level, 16) / np.float32(255), 4, draw)
        assert np.allclose(counts, np.rint(counts), atol=1e-4)
        assert counts.mean() == pytest.approx(75 * level / 255, rel=0.02)
        assert counts.var() == pytest.approx(75 * level / 255, rel=0.05)


def test_impulse_noise_is_half_salt_and_half_pepper() -> None:
    found = corrupt(grey(128, 32), "impulse_noise", 5, samples=np.arange(32))
    assert set(np.unique(found)) == {0, 128, 255}
    for value in (0, 255):
        assert (found == value).mean() == pytest.approx(0.035, rel=0.05)


def test_normal_words_are_normal() -> None:
    found = rng.normal(rng.sample_words((0, 0), Stream.CORRUPTION, np.arange(8), 2500)).ravel()
    assert stats.kstest(found, "norm").pvalue > 0.01
    assert np.corrcoef(found[::2], found[1::2])[0, 1] == pytest.approx(0, abs=0.03)


# Blur


def test_disk_of_radius_one_preserves_light() -> None:
    plus = blur.disk(1, 0.01)  # hardly smoothed
    wanted = np.zeros((5, 5))
    wanted[2, 1:4] = wanted[1:4, 2] = 0.2
    assert np.allclose(plus, wanted)
    for radius, smoothing in blur.FOCUS:
        assert blur.disk(radius, smoothing).sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_what_has_one_colour_cannot_be_blurred(name: str) -> None:
    assert np.abs(corrupt(grey(77), name, 5, samples=SAMPLES[:4]).astype(int) - 77).max() <= 1


def test_glass_takes_neighbour_from_above_or_from_left(images: np.ndarray) -> None:
    seen = corrupt(images, "glass_blur", 1, samples=SAMPLES)  # its smoothing is none
    assert np.array_equal(seen[:, :, :2], images[:, :, :2])
    inner, moves = seen[:, :, 2:, 2:], [(0, 0), (0, 1), (1, 0), (1, 1)]
    near = [(inner == images[:, :, 2 - i : 32 - i, 2 - j : 32 - j]).all(axis=1) for i, j in moves]
    assert np.any(near, axis=0).all()
    assert (~near[0]).any()


def test_zoom_blur_is_the_mean_of_the_zooms(images: np.ndarray) -> None:
    from distill.data.corruptions.filters import magnifier, on_both_axes

    x = images / 255
    zooms = [on_both_axes(magnifier(32, f), x) for f in np.arange(1, 1.11, 0.01)]
    wanted = (x + sum(zooms)) / (len(zooms) + 1)
    found = blur.zoom_blur(x.astype(np.float32), 2, lambda n: None)  # type: ignore[arg-type,return-value]
    assert np.allclose(found, wanted, atol=1e-5)


# Weather


def test_brightness_raises_value_and_keeps_hue_and_saturation(images: np.ndarray) -> None:
    import colorsys

    found = weather.brightness(images / np.float32(255), 3, lambda n: None)  # type: ignore[arg-type,return-value]
    for n, row, column in [(0, 3, 5), (1, 16, 16), (2, 30, 2)]:
        h, s, v = colorsys.rgb_to_hsv(*images[n, :, row, column] / 255)
        wanted = colorsys.hsv_to_rgb(h, s, min(v + 0.15, 1))
        assert np.allclose(found[n, :, row, column], wanted, atol=1e-5)
    assert np.allclose(corrupt(grey(0), "brightness", 3, samples=SAMPLES[:4]), int(0.15 * 255))


def test_fog_dims_so_that_the_brightest_stays() -> None:
    # Of an even image v and fog f in 0..1: (v + t f) v / (v + t); where f is 1, v again.
    v, thickness = 120 / 255, 0.75
    found = corrupt(grey(120), "fog", 3, samples=SAMPLES[:4]).reshape(4, -1)
    assert (found.max(axis=1) == 120).all()
    assert (found.min(axis=1) == int(255 * v * v / (v + thickness))).all()


def test_clouds_fill_unit_range_and_decay_smooths() -> None:
    chances = np.random.default_rng(0).random((8, 1023))
    rough, smooth = (weather.plasma(chances, 32, decay) for decay in (1.75, 3))
    for cloud in (rough, smooth):
        assert np.allclose([cloud.min(axis=(1, 2)), cloud.max(axis=(1, 2))], [[0] * 8, [1] * 8])
    # The last points are the mean of four plus what is drawn: (3 / 1.75)^8 = 75 times as much.
    fine = [
        np.abs(cloud[:, 1:-1:2, 1:-1:2] - corners_of(cloud)).mean() for cloud in (rough, smooth)
    ]
    assert fine[0] > 20 * fine[1]


def test_a_cloud_of_four_points_by_hand() -> None:
    """The middle is raised by all it can be; the two between lie halfway, the corner at zero."""
    cloud = weather.plasma(np.array([[1.0, 0.5, 0.5]]), 2, 3)
    assert np.allclose(cloud, [[[0, 0.5], [0.5, 1]]])


def corners_of(cloud: np.ndarray) -> np.ndarray:
    return sum(cloud[:, i:-1:2, j:-1:2][:, :15, :15] for i in (0, 2) for j in (0, 2)) / 4


def test_snow_is_paler_and_symmetric() -> None:
    found = corrupt(grey(100), "snow", 2, samples=SAMPLES[:4]).astype(int)
    assert np.abs(found - found[:, :, ::-1, ::-1]).max() <= 1
    pale = 0.9 * 100 + 0.1 * (150 + 127.5)
    assert found.min() == int(pale)
    assert found.max() > pale + 50


# Machines


def test_contrast_is_drawn_to_mean_of_each_colour(images: np.ndarray) -> None:
    x = images / 255
    mean = x.mean(axis=(2, 3), keepdims=True)
    found = corrupt(images, "contrast", 5, samples=SAMPLES)
    assert np.abs(found - 255 * (mean + 0.15 * (x - mean))).max() <= 1.01


def test_elastic_without_displacement_is_the_image(images: np.ndarray) -> None:
    half = lambda n: np.full((N, n), 1 << 63, dtype=np.uint64)  # noqa: E731, chances of one half
    found = digital.elastic_transform(images / np.float32(255), 3, half)
    assert np.array_equal(to_pixels(found), images)


def test_corners_that_move_carry_the_image_with_them() -> None:
    """All three by (2, -1): pixel (x, y) comes from (x - 2, y + 1)."""
    back = digital.inverse_affine_maps(np.tile([2.0, -1.0], (1, 3, 1)), 32)[0]
    assert np.allclose(np.array([10.0, 20.0, 1.0]) @ back, [8, 21])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_and_jpeg_are_pillow_s(severity: int, images: np.ndarray) -> None:
    side, quality = (30, 28, 27, 24, 20)[severity - 1], (80, 65, 58, 50, 40)[severity - 1]
    small = corrupt(images, "pixelate", severity, samples=SAMPLES)
    coded = corrupt(images, "jpeg_compression", severity, samples=SAMPLES)
    for n in (0, 7):
        image = Image.fromarray(images[n].transpose(1, 2, 0))
        boxes = image.resize((side, side), Image.Resampling.BOX)
        wanted = np.asarray(boxes.resize((32, 32), Image.Resampling.BOX))
        assert np.array_equal(small[n].transpose(1, 2, 0), wanted)
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        assert np.array_equal(coded[n].transpose(1, 2, 0), np.asarray(Image.open(file)))


@pytest.mark.long
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_other_image_sizes_are_corrupted(name: str, size: int) -> None:
    whole = load_data_set.load("synthetic", "test", size=size).images[:8]
    found = corrupt(whole, name, 3, samples=SAMPLES[:8])
    assert (found.shape, found.dtype) == (whole.shape, np.uint8)
    assert 0 < np.abs(found.astype(int) - whole).mean() < 128


@pytest.mark.parametrize("severity", [1, 5])
def test_zoom_of_larger_images_is_the_same(
    severity: int, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = images.astype(np.float32) / 255
    by_matrix = blur.zoom_blur(given, severity, lambda n: np.zeros((N, n)))
    monkeypatch.setattr(blur, "LARGEST_MATRIX", 16)
    by_axis = blur.zoom_blur(given, severity, lambda n: np.zeros((N, n)))
    assert by_axis.dtype == by_matrix.dtype
    np.testing.assert_allclose(by_axis, by_matrix, atol=1e-6)
