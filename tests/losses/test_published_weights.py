"""The published ingredients: weight times our term is the authors' weight times their loss.

The authors' losses are written out in numpy after RepDistiller's files, after mdistiller's for DKD
and image_classification_sota's for DIST, for a random batch of 64 and for one of 16, the last one
of 50,000 images.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.components.build_loss_terms import build_objective
from distill.losses.objective import LossInputs, Objective
from distill.recipe import recipes
from tests.losses.loss_inputs import STUDENT, TEACHER, loss_inputs

Maps = NDArray[np.float64]
N_IMAGES, STAGES = 200, ("stages.0", "stages.1", "stages.2")
LABELS = torch.arange(N_IMAGES) % 5
Shapes = dict[str, tuple[int, ...]]
STEM: Shapes = {"stem": (3, 8, 8)}


def objective(spec: str, *overrides: str, student: Shapes = STUDENT) -> Objective:
    """The objective of a recipe, for the shapes of `loss_inputs.py`."""
    torch.manual_seed(0)
    recipe = recipes.load(spec, overrides).recipe
    made = build_objective(
        recipe,
        student_shapes=student | STEM,
        teacher_shapes=TEACHER | STEM,
        labels=LABELS,
    )
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


def selectivity(given: LossInputs, made: Objective, names: tuple[str, ...] = STAGES) -> float:
    """NSTLoss: means of (x . y)^2 over the batch and all pairs of channels, summed over maps."""

    def k(a: Maps, b: Maps) -> float:
        return float((np.einsum("bip,bjp->bij", a, b) ** 2).mean())

    total = 0.0
    for pair in pairs(given, names):
        s, t = (l2(maps.reshape(*maps.shape[:2], -1)) for maps in pair)
        total += k(t, t) + k(s, s) - 2 * k(s, t)
    return total


def correlation(given: LossInputs, made: Objective) -> float:
    """Correlation of two LinearEmbeds: products of consecutive samples' differences."""
    term: Any = made.losses["cc"]
    [features] = pairs(given, ("features",))
    s, t = (
        f @ embed.weight.detach().numpy().T + embed.bias.detach().numpy()
        for f, embed in zip(features, (term.student_embed, term.teacher_embed), strict=True)
    )
    delta = abs(s - t)
    return float((delta[:-1] * delta[1:]).sum(1).mean())


def factors(given: LossInputs, made: Objective) -> float:
    """FactorTransfer, and the MSELoss of the first stage at its rate: 0.01 of 0.05, 200 x 0.001."""
    term: Any = made.losses["ft"]
    s, t = given.student_taps["stages.2"], given.teacher_taps["stages.2"]
    with torch.no_grad():
        ours, theirs = term.translator(s).numpy(), term.encoder(t)
        rebuilt = term.decoder(theirs).numpy()

    def factor(f: Maps) -> Maps:
        return l2((f**2).mean(1).reshape(len(f), -1))

    transfer = abs(factor(ours) - factor(theirs.numpy())).mean()
    return float(transfer + 0.2 / 200 * ((rebuilt - t.numpy()) ** 2).mean())


def boundaries(given: LossInputs, made: Objective) -> float:
    """ABLoss of three stages after a Connector, whose bias batch norm removes."""
    total = 0.0
    for level, (s, t) in enumerate(pairs(given, STAGES)):
        layer = made.losses["ab"].connectors[level][0]  # type: ignore[index, union-attr]
        s = np.einsum("oi,bihw->bohw", layer.weight.detach().numpy()[:, :, 0, 0], s)
        s = (s - s.mean((0, 2, 3), keepdims=True)) / np.sqrt(s.var((0, 2, 3), keepdims=True) + 1e-5)
        loss = (s + 1) ** 2 * ((s > -1) & (t <= 0)) + (s - 1) ** 2 * ((s <= 1) & (t > 0))
        total += 2.0 ** (level - 2) * loss.sum() / len(s) / 1000 * 3
    return float(total)


def flows(given: LossInputs, made: Objective) -> float:
    """FSP of the stem and three stages; maps of half the height are averages of 2x2 pixels."""

    def g(maps: list[Maps]) -> list[Maps]:
        made_of = []
        for a, b in pairwise(maps):
            if a.shape[2] == 2 * b.shape[2]:
                a = (a[..., ::2, :] + a[..., 1::2, :]) / 2
                a = (a[..., ::2] + a[..., 1::2]) / 2
            made_of.append(np.einsum("bihw,bjhw->bji", a, b) / b[0, 0].size)
        return made_of

    ours, theirs = (list(maps) for maps in zip(*pairs(given, ("stem", *STAGES)), strict=True))
    return float(sum(((s - t) ** 2).mean() for s, t in zip(g(ours), g(theirs), strict=True)))


def decoupled(given: LossInputs, made: Objective) -> float:
    """mdistiller's dkd_loss at alpha 1, beta 2 and T = 4."""
    assert given.teacher is not None
    labels = np.eye(given.targets.shape[1])[given.targets.numpy().argmax(1)]
    z = [logits.numpy() / 4 for logits in (given.student, given.teacher)]
    b_s, b_t = (np.stack([(softmax(x) * mask).sum(1) for mask in (labels, 1 - labels)]) for x in z)
    q_s, q_t = (softmax(x - 1000 * labels) for x in z)
    others = labels == 0
    target = (b_t * np.log(b_t / b_s)).sum()
    rest = (q_t[others] * np.log(q_t[others] / q_s[others])).sum()
    return float((target + 2 * rest) * 16 / len(labels))


def ranks(given: LossInputs, made: Objective) -> float:
    """DIST of lib/models/losses/dist_kd.py at beta 1, gamma 1 and tau 4, with its factor tau^2."""

    def mean_correlation(a: Maps, b: Maps) -> float:
        return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))

    assert given.teacher is not None
    s, t = (softmax(logits.numpy() / 4) for logits in (given.student, given.teacher))
    return 16 * (1 - mean_correlation(s, t) + 1 - mean_correlation(s.T, t.T))


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
# RepDistiller's -r, -a and -b (scripts/run_cifar_distill.sh), and the loss of --distill. For `dist`
# the weights of the labels, of KD and of the loss in configs/strategies/distill/dist_cifar.yaml.
PUBLISHED: dict[str, tuple[float, float, float, Authors]] = {
    "fitnet": (1, 0, 100, hint),
    "at": (1, 0, 1000, attention),
    "sp": (1, 0, 3000, similarity),
    "vid": (1, 0, 1, likelihood),
    "rkd": (1, 0, 1, relations),
    "pkt": (1, 0, 30_000, neighbours),
    "nst": (1, 0, 50, selectivity),
    "cc": (1, 0, 0.02, correlation),
    "ft": (1, 0, 200, factors),
    "dkd": (1, 0, 1, decoupled),
    "dist": (1, 0, 2, ranks),
    "crd": (1, 0, 0.8, contrast),
    "crd_kd": (1, 1, 0.8, contrast),
}
# A first stage of 30 epochs with this loss alone, to which -b is not applied (helper/pretrain.py);
# then 240 epochs with the labels alone.
IN_TWO_STAGES: dict[str, Authors] = {"ab": boundaries, "fsp": flows}


@pytest.mark.long
@pytest.mark.parametrize("batch", [64, 16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ingredient_is_the_authors_objective(name: str, batch: int) -> None:
    r, a, b, authors = PUBLISHED[name]
    given = loss_inputs(batch)
    made = objective(f"crd_cifar100+published_{name}")
    expected = r * cross_entropy(given) + a * kd(given) + b * authors(given, made)
    assert b * authors(given, made) > 0.1 * cross_entropy(given), "the term must count"
    assert ours(made, given) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [64, 16])
@pytest.mark.parametrize("name", IN_TWO_STAGES)
def test_two_stages_are_the_authors(name: str, batch: int) -> None:
    """In both, the teacher's maps of the student's shapes: FSP needs equal channels."""
    given = loss_inputs(batch, like_teacher=True)
    stems = torch.randn(2, batch, *STEM["stem"], dtype=torch.float64)
    given = replace(
        given,
        student_taps=dict(given.student_taps) | {"stem": stems[0]},
        teacher_taps=dict(given.teacher_taps) | {"stem": stems[1]},
    )
    spec = f"crd_cifar100+published_{name}"
    made, recipe = objective(spec, student=TEACHER), recipes.load(spec).recipe
    assert (recipe.train.epochs, recipe.optim.milestones) == (270, (180, 210, 240))
    end = 30 * 782
    first, second = (made(given, step / (270 * 782))["total"].item() for step in (end - 1, end))
    assert first == pytest.approx(IN_TWO_STAGES[name](given, made), rel=1e-5)
    assert second == pytest.approx(cross_entropy(given), rel=1e-6)


def test_published_kd_is_the_authors_objective() -> None:
    given = loss_inputs(64)
    expected = 0.1 * cross_entropy(given) + 0.9 * kd(given)
    assert ours(objective("crd_cifar100"), given) == pytest.approx(expected, rel=1e-6)


def test_one_map_of_nst_is_the_authors() -> None:
    given = loss_inputs(64)
    made = objective("nst", *(f"loss.nst.{net}_tap=maps" for net in ("student", "teacher")))
    expected = cross_entropy(given) + 50 * selectivity(given, made, ("maps",))
    assert made.terms["nst"].weight == 50
    assert ours(made, given) == pytest.approx(expected, rel=1e-6)


def test_every_published_ingredient_is_compared() -> None:
    shipped = {name for name, _, _ in recipes.shipped() if name.startswith("published_")}
    assert shipped == {f"published_{name}" for name in [*PUBLISHED, *IN_TWO_STAGES]}


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
