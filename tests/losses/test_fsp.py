"""FSP against the paper's matrices written out; which networks it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.components.build_loss_terms import build_objective
from distill.errors import UnsuitableRecipe
from distill.losses.fsp import FSP
from distill.recipe import recipes
from tests.losses.loss_inputs import STUDENT, TEACHER, B, loss_inputs

TAPS = ("stages.0", "stages.1", "stages.2")
SAME = {"student_shapes": TEACHER, "teacher_shapes": TEACHER}


def halved(maps: np.ndarray) -> np.ndarray:
    """Mean of each square of 2x2 pixels."""
    return (maps[:, ::2, ::2] + maps[:, 1::2, ::2] + maps[:, ::2, 1::2] + maps[:, 1::2, 1::2]) / 4


def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix G of one sample's maps; the first has twice the height and width."""
    a, (_, height, width) = halved(a), b.shape
    result = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            for h in range(height):
                for w in range(width):
                    result[i, j] += a[i, h, w] * b[j, h, w] / (height * width)
    return result


def test_equals_the_matrices_written_out() -> None:
    given, total = loss_inputs(like_teacher=True), 0.0
    ours, theirs = (
        {tap: maps.numpy() for tap, maps in taps.items()}
        for taps in (given.student_taps, given.teacher_taps)
    )
    for first, second in (("stages.0", "stages.1"), ("stages.1", "stages.2")):
        for b in range(B):
            difference = flow(ours[first][b], ours[second][b]) - flow(
                theirs[first][b], theirs[second][b]
            )
            total += np.mean(difference**2) / B
    assert FSP(TAPS, TAPS, **SAME)(given).item() == pytest.approx(total, rel=1e-9)


def test_the_default_maps_are_stem_and_stages() -> None:
    shapes = TEACHER | {"stem": (2, 8, 8)}
    given = loss_inputs(like_teacher=True)
    stems = [torch.randn(B, 2, 8, 8, dtype=torch.float64) for _ in range(2)]
    given = replace(
        given,
        student_taps=dict(given.student_taps) | {"stem": stems[0]},
        teacher_taps=dict(given.teacher_taps) | {"stem": stems[1]},
    )
    first = FSP(("stem", "stages.0"), ("stem", "stages.0"), **SAME | dict.fromkeys(SAME, shapes))
    whole = FSP(student_shapes=shapes, teacher_shapes=shapes)
    rest = FSP(TAPS, TAPS, **SAME)
    assert torch.isclose(whole(given), first(given) + rest(given), rtol=1e-9)
    assert first(given) > 0


def test_maps_of_the_networks_may_differ_in_size() -> None:
    """Repeating every pixel of both maps changes no mean over pixels."""
    given = loss_inputs(like_teacher=True)
    large = {
        tap: maps.repeat_interleave(2, -1).repeat_interleave(2, -2)
        for tap, maps in given.teacher_taps.items()
        if tap in TAPS
    }
    term = FSP(TAPS, TAPS, **SAME)
    assert torch.isclose(term(replace(given, teacher_taps=large)), term(given), rtol=1e-9)


def test_unequal_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="needs maps of equal channels in both networks") as error:
        FSP(TAPS, TAPS, student_shapes=STUDENT, teacher_shapes=TEACHER)
    text = str(error.value)
    assert "stages.0 has 3 channels in the student and stages.0 4 in the teacher" in text
    assert text.count("channels in the student") == 3


def test_a_single_map_is_refused() -> None:
    with pytest.raises(ValueError, match="compares consecutive maps, and there is only one"):
        FSP(TAPS[:1], TAPS[:1], **SAME)


def test_the_message_names_the_term_to_remove() -> None:
    recipe = recipes.load("fsp").recipe
    shapes = {"stem": (16, 32, 32), **dict.fromkeys(TAPS, (8, 8, 8))}
    with pytest.raises(UnsuitableRecipe, match=r"loss.fsp: .*\nType --set loss.fsp=false"):
        build_objective(
            recipe, student_shapes=shapes, teacher_shapes=shapes | {"stages.1": (9, 8, 8)}
        )


def test_the_recipe_has_the_two_stages() -> None:
    """30 of 270 epochs with FSP alone, then the labels alone."""
    loss = recipes.load("fsp").recipe.loss
    assert loss.fsp is not None and loss.hard is not None and loss.kd is None
    assert loss.fsp.when.end == loss.hard.when.begin == pytest.approx(30 / 270, abs=1e-4)
