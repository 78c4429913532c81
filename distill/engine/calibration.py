"""Temperature scaling: one number that makes confidences mean what they say.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv
1706.04599, section 4.2: logits are divided by the temperature T that minimises the negative
log-likelihood of images that were not trained on. No answer changes, only how sure it is.
"""

from math import sqrt

from torch import Tensor

from distill.engine.metrics import measures

COLDEST, HOTTEST = 0.01, 100.0  # where all is right, the colder the likelier, without an end
HALVINGS = 60  # of the logarithm of their ratio: to float64's last bits


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, between 0.01 and 100, that minimises the NLL of logits [N, C].

    The NLL is convex in 1/T with the slope mean(E_p[z] - z_label), p = softmax(z / T); where the
    slope is zero is found by halving.
    """
    z = logits.double()
    low, high = 1 / HOTTEST, 1 / COLDEST
    of_label = z.gather(1, labels[:, None]).mean()
    for _ in range(HALVINGS):
        middle = sqrt(low * high)
        expected = ((z * middle).softmax(dim=-1) * z).sum(dim=-1).mean()
        low, high = (low, middle) if expected > of_label else (middle, high)
    return 1 / sqrt(low * high)


def calibrated(held_out: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`temperature` of the held-out logits and labels; `nll` and `ece` of others divided by it."""
    temperature = fit_temperature(*held_out)
    after = measures(logits.double() / temperature, labels)
    return {
        "temperature": temperature,
        "nll_calibrated": after["nll"],
        "ece_calibrated": after["ece"],
    }
