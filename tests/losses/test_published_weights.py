"""The published ingredients: weight times our term is the authors' weight times their loss.

The authors' losses are written out in numpy after RepDistiller's files, for a random batch of 64
and for one of 16, the last one of 50,000 images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.components.loss_terms import build_objective
from distill.losses.objective import LossInputs, Objective
from distill.recipe import recipes
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs

Maps = NDArray[np.float64]
N_IMAGES, STAGES = 200, ("stages.0", "stages.1", "stages.2")
LABELS = torch.arange(N_IMAGES) % 5


def objective(spec: str, *overrides: str) -> Objective:
    """The objective of a recipe, for the shapes of `loss_inputs.py`."""
    torch.manual_seed(0)
    recipe = recipes.load(spec, overrides).recipe
    made = build_objective(recipe, student_shapes=STUDENT, teacher_shapes=TEACHER, labels=LABELS)
    return made.double()


def ours(made: Objective, given: LossInputs) -> float:
    """The weighted sum of the terms."""
    torch.manual_seed(1)  # of crd's negatives
    return sum(term.weight * term.loss(given).item() for term in made.terms.values())


def pairs(given: LossInputs, names: tuple[str, ...]) -> list[tuple[Maps, Maps]]:
    return [(given.student_taps[name].numpy(), given.teacher_taps[name].numpy()) for name in names]


def cross_entropy(given: LossInputs) -> float:
    logits, labels = given.student.numpy(), given.targets.numpy().argmax(1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


def softmax(logits: Maps) -> Maps:
    result: Maps = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return result


def kd(given: LossInputs) -> float:
    """DistillKL at T = 4: summed over all, times T^2, divided by the batch size."""
    assert given.teacher is not None
    p_s, p_t = softmax(given.student.numpy() / 4), softmax(given.teacher.numpy() / 4)
    return float((p_t * (np.log(p_t) - np.log(p_s))).sum() * 16 / len(p_s))


def l2(rows: Maps) -> Maps:
    """Rows of norm 1, along the last axis."""
    result: Maps = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return result


def attention(given: LossInputs, made: Objective) -> float:
    def q(maps: Maps) -> Maps:
        return l2((maps**2).mean(1).reshape(len(maps), -1))

    return float(sum(((q(s) - q(t)) ** 2).mean() for s, t in pairs(given, STAGES)))


def similarity(given: LossInputs, made: Objective) -> float:
    def g(maps: Maps) -> Maps:
        flat = maps.reshape(len(maps), -1)
        return l2(flat @ flat.T)

    [(s, t)] = pairs(given, ("stages.2",))
    return float(((g(t) - g(s)) ** 2).sum() / len(s) ** 2)


def selectivity(given: LossInputs, made: Objective) -> float:
    """NSTLoss of one pair of maps: means of (x . y)^2 over the batch and all pairs of channels."""
    [(s, t)] = [tuple(l2(m.reshape(*m.shape[:2], -1)) for m in p) for p in pairs(given, ("maps",))]

    def k(a: Maps, b: Maps) -> float:
        return float((np.einsum("bip,bjp->bij", a, b) ** 2).mean())

    return k(t, t) + k(s, s) - 2 * k(s, t)


def neighbours(given: LossInputs, made: Objective) -> float:
    def p(f: Maps) -> Maps:
        unit = f / (np.sqrt((f**2).sum(1, keepdims=True)) + 1e-7)
        kernel = (unit @ unit.T + 1) / 2
        result: Maps = kernel / kernel.sum(1, keepdims=True)
        return result

    [(s, t)] = [(p(s), p(t)) for s, t in pairs(given, ("features",))]
    return float((t * np.log((t + 1e-7) / (s + 1e-7))).mean())


def huber(gap: Maps) -> float:
    return float(np.where(abs(gap) < 1, gap**2 / 2, abs(gap) - 0.5).mean())


def relations(given: LossInputs, made: Objective) -> float:
    def distances(f: Maps) -> Maps:
        d = np.sqrt(((f[:, None] - f[None]) ** 2).sum(-1))
        result: Maps = d / d[d > 0].mean()
        return result

    def angles(f: Maps) -> Maps:
        unit = l2(f[None] - f[:, None])
        return np.einsum("ijd,ikd->ijk", unit, unit)

    [(s, t)] = pairs(given, ("features",))
    return 25 * huber(distances(s) - distances(t)) + 50 * huber(angles(s) - angles(t))


def hint(given: LossInputs, made: Objective) -> float:
    """ConvReg of equal sizes: a 1x1 convolution with bias, batch norm, ReLU; then MSELoss."""
    [(s, t)] = pairs(given, ("stages.1",))
    layer = made.losses["fitnet"].regressor[0]  # type: ignore[index, union-attr]
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    made_of = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], s) + bias[:, None, None]
    centred = made_of - made_of.mean((0, 2, 3), keepdims=True)
    normed = centred / np.sqrt(made_of.var((0, 2, 3), keepdims=True) + 1e-5)
    return float(((np.maximum(normed, 0) - t) ** 2).mean())


def likelihood(given: LossInputs, made: Objective) -> float:
    """VIDLoss of three stages, with a variance of 5 + 1e-5 instead of 5 at the begin."""
    total = 0.0
    for level, (s, t) in enumerate(pairs(given, STAGES)):
        layers = made.losses["vid"].means[level][::2]  # type: ignore[index, union-attr]
        for i, layer in enumerate(layers):
            s = np.einsum("oi,bihw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], s)
            s = np.maximum(s, 0) if i < 2 else s
        total += (0.5 * ((s - t) ** 2 / 5 + np.log(5))).mean()
    return float(total)


def contrast(given: LossInputs, made: Objective) -> float:
    """CRDLoss with K = 16,384: scores of the other network's memory, Z from the first batch."""
    term: Any = made.losses["crd"]
    torch.manual_seed(1)
    assert given.samples is not None
    chosen = torch.cat([given.samples[:, None], term._negatives(given.samples)], 1).numpy()
    k, total = chosen.shape[1] - 1, 0.0
    for own, other in (("student", "teacher"), ("teacher", "student")):
        taps = getattr(given, f"{own}_taps")["features"].numpy()
        embed = getattr(term, f"{own}_embed")
        v = taps @ embed.weight.detach().numpy().T + embed.bias.detach().numpy()
        v = v / np.sqrt((v**2).sum(1, keepdims=True))
        bank = getattr(term, f"{other}_bank").numpy()
        score = np.exp(np.einsum("bkd,bd->bk", bank[chosen], v) / 0.07)
        x = score / (score.mean() * N_IMAGES)
        noise = k / N_IMAGES
        right = np.log(x[:, 0] / (x[:, 0] + noise + 1e-7)).sum()
        wrong = np.log(noise / (x[:, 1:] + noise + 1e-7)).sum()
        total += -(right + wrong) / len(v)
    return total


Authors = Callable[[LossInputs, Objective], float]
# RepDistiller's -r, -a and -b (scripts/run_cifar_distill.sh), and the loss of --distill.
PUBLISHED: dict[str, tuple[float, float, float, Authors]] = {
    "fitnet": (1, 0, 100, hint),
    "at": (1, 0, 1000, attention),
    "sp": (1, 0, 3000, similarity),
    "vid": (1, 0, 1, likelihood),
    "rkd": (1, 0, 1, relations),
    "pkt": (1, 0, 30_000, neighbours),
    "crd": (1, 0, 0.8, contrast),
    "crd_kd": (1, 1, 0.8, contrast),
}


@pytest.mark.parametrize("batch", [64, 16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ingredient_is_the_authors_objective(name: str, batch: int) -> None:
    r, a, b, authors = PUBLISHED[name]
    given = loss_inputs(batch)
    made = objective(f"crd_cifar100+published_{name}")
    expected = r * cross_entropy(given) + a * kd(given) + b * authors(given, made)
    assert b * authors(given, made) > 0.1 * cross_entropy(given), "the term must count"
    assert ours(made, given) == pytest.approx(expected, rel=1e-5)


def test_published_kd_is_the_authors_objective() -> None:
    given = loss_inputs(64)
    expected = 0.1 * cross_entropy(given) + 0.9 * kd(given)
    assert ours(objective("crd_cifar100"), given) == pytest.approx(expected, rel=1e-6)


def test_one_map_of_nst_is_the_authors() -> None:
    given = loss_inputs(64)
    made = objective("nst", *(f"loss.nst.{net}_tap=maps" for net in ("student", "teacher")))
    expected = cross_entropy(given) + 50 * selectivity(given, made)
    assert made.terms["nst"].weight == 50
    assert ours(made, given) == pytest.approx(expected, rel=1e-6)


def test_every_published_ingredient_is_compared() -> None:
    shipped = {name for name, _, _ in recipes.shipped() if name.startswith("published_")}
    assert shipped == {f"published_{name}" for name in PUBLISHED}


def test_the_protocol_is_repdistillers() -> None:
    """train_student.py's defaults, in the recipe of each method, whatever the first part sets."""
    for spec in ("crd_cifar100", "kd+crd_protocol", "fast_kd+crd_protocol", "at+crd_protocol"):
        recipe = recipes.load(spec).recipe
        optim, train = recipe.optim, recipe.train
        assert (optim.name, optim.lr, optim.momentum) == ("momentum", 0.05, 0.9)
        assert (optim.weight_decay, optim.decay_norm, optim.warmup_epochs) == (5e-4, True, 0)
        assert (optim.schedule, optim.milestones, optim.gamma) == (
            "milestones", (150, 180, 210), 0.1,
        )  # fmt: skip
        assert (train.epochs, train.batch_size, train.drop_last) == (240, 64, False)
        assert train.keep_epochs == 1 and recipe.ema is None and recipe.data.holdout == 0
        assert recipe.augment.crop is None and recipe.augment.translate is not None
        assert recipe.augment.translate.pixels == 4 and recipe.augment.flip is not None
