"""Weights of another program: read, unwrapped, renamed and refused with all differences."""

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.errors import UserError
from distill.models import foreign_weights
from networks import by_name, crd_weight_names
from students.normalize_images import Normalize
from tests.networks.published_networks import NETWORKS, published

ONE = torch.ones(1)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def loaded(network: str, weights: dict[str, torch.Tensor], classes: int = 7) -> nn.Module:
    net = by_name.build(network, classes=classes).eval()
    translate = partial(crd_weight_names.translate, network)
    original = partial(crd_weight_names.original, network)
    foreign_weights.load_into(net, weights, f"a.pth does not fit {network}", translate, original)
    return net


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_published_weights_give_published_logits(network: str) -> None:
    theirs = published(network)
    ours = loaded(network, dict(theirs.state_dict()))
    with torch.no_grad():
        expected, found = theirs(Normalize()(IMAGES)), ours(IMAGES)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 240, "best_acc": torch.tensor(0.7)},
        lambda state: {"opt": {"lr": 0.05}, "model": state, "optimizer": {"state": {}}},
        lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: OrderedDict((f"module._orig_mod.{k}", v) for k, v in state.items()),
        lambda state: {"checkpoint": {"model_state_dict": state}},
    ],
    ids=["plain", "lightning", "repdistiller", "parallel", "compiled", "nested"],
)
def test_wrappings_are_removed(wrap: Any, tmp_path: Path) -> None:
    state = published("vgg8").state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    found = foreign_weights.read(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"state_dict": {"a": ONE}, "model": {"a": ONE}}, "under state_dict and model: which to"),
        ({"a": ONE, b"a": ONE}, "has names as text and as bytes: a"),
        ({"model": {"a": ONE, b"a": ONE}}, "has names as text and as bytes: a"),
    ],
)
def test_ambiguous_weights_are_refused(content: Any, fault: str) -> None:
    with pytest.raises(UserError, match=f"a.pth .*{fault}.*\nSave its weights alone"):
        foreign_weights.unwrapped(content, Path("a.pth"))


def test_tables_without_tensors_are_passed_over() -> None:
    content = {"state_dict": {}, "net": {"a": ONE}, "params": {"lr": 0.1}, "model": {"depth": 3}}
    assert foreign_weights.unwrapped(content, Path("a.pth")) == {"a": ONE}


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(2), "module.b": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert foreign_weights.read(tmp_path / "a.safetensors").keys() == {"a", "b"}


class Trap:
    """Pickles as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "trace")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"more than tensors, and reading it would run code"):
        foreign_weights.read(tmp_path / "a.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"no file of torch", "a.pth cannot be read: it is not what torch.save writes"),
        ("a.safetensors", b"\x08", "a.safetensors is not a valid safetensors file: it is damaged"),
        ("a.pth", {"lr": 1.0, "a": {}, "b": {}}, "no dictionary of tensors.*found: lr, a, b"),
        ("a.pth", [1, 2], "no dictionary of tensors.*found: a list"),
    ],
)
def test_unusable_file_is_one_message(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        foreign_weights.read(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pth does not exist\.\nGive a \.safetensors"):
        foreign_weights.read(tmp_path / "a.pth")


def test_all_differences_are_listed_at_once() -> None:
    state = dict(published("resnet20").state_dict())
    del state["conv1.weight"], state["layer2.1.bn2.bias"]
    state["extra\x1b.weight"] = torch.ones(1)
    state["fc.weight"] = torch.ones(100, 64)
    with pytest.raises(UserError) as fault:
        loaded("resnet20", state)
    assert str(fault.value).splitlines() == [
        "a.pth does not fit resnet20:",
        "  missing: conv1.weight, layer2.1.bn2.bias",
        r"  unknown: extra\x1b.weight",
        "  of another shape: fc.weight [100, 64] instead of [7, 64]",
    ]


def test_long_lists_are_cut() -> None:
    with pytest.raises(UserError, match=r"missing: stem\.0\.weight, .* and \d+ more"):
        loaded("resnet20", {})


@pytest.mark.parametrize("network", NETWORKS)
def test_every_published_name_is_translated_back(network: str) -> None:
    for name in published(network).state_dict():
        ours = crd_weight_names.translate(network, name)
        again = crd_weight_names.original(network, str(ours))
        assert crd_weight_names.translate(network, again) == ours
        assert again != ours


def test_own_names_are_accepted_without_translation() -> None:
    net = by_name.build("timm/test_resnet", classes=7).eval()
    inner = {name.removeprefix("net."): t for name, t in net.state_dict().items() if "net." in name}
    other = by_name.build("timm/test_resnet", classes=7).eval()
    foreign_weights.load_into(other, inner, "a.pth", lambda name: None)
    assert torch.equal(other(IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fc.bias": torch.full((7,), float("nan"))}, "not finite: fc.bias"),
        ({"fc.bias": torch.full((7,), float("-inf"))}, "not finite: fc.bias"),
        ({"fc.bias": torch.full((7,), 1e300, dtype=torch.float64)}, "not finite: fc.bias"),
        ({"fc.bias": torch.ones(7).long()}, "of another type: fc.bias int64 instead of float32"),
        ({"fc.bias": torch.ones(7).bool()}, "of another type: fc.bias bool instead of float32"),
        ({"fc.bias": torch.ones(7) * 1j}, "type: fc.bias complex64 instead of float32"),
        ({"bn1.running_var": torch.tensor([-1.0, *[1.0] * 15])}, "negative: bn1.running_var"),
        ({"bn1.running_var": torch.full((16,), torch.nan)}, "not finite: bn1.running_var"),
        ({"head.bias": torch.ones(7)}, "twice, under two names: fc.bias and head.bias"),
        ({"x" * 5000: torch.ones(7)}, "unknown: " + "x" * 100),
    ],
)  # fmt: skip
def test_unusable_tensor_is_named(change: dict[str, torch.Tensor], fault: str) -> None:
    state = dict(published("resnet20", 7).state_dict())
    with pytest.raises(UserError) as caught:
        loaded("resnet20", state | change)
    assert [line.endswith(fault) for line in str(caught.value).splitlines()[1:]] == [True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_converted(dtype: torch.dtype) -> None:
    state = dict(published("resnet20", 7).state_dict())
    bias = torch.arange(7.0)
    net = loaded("resnet20", state | {"fc.bias": bias.to(dtype)})
    assert torch.equal(net.state_dict()["head.bias"], bias)


class CountedTable(dict[str, Any]):
    """A dictionary that counts how often its values are read."""

    n_reads = 0

    def values(self) -> Any:
        self.n_reads += 1
        return super().values()


def test_shared_tables_are_searched_once() -> None:
    """Of n tables of n shared tables each, n^4 would be searched."""
    shared = CountedTable(epoch=1)
    content = {"state_dict": {f"a{n}": {f"b{n}": shared for n in range(20)} for n in range(20)}}
    with pytest.raises(UserError, match="contains no dictionary of tensors"):
        foreign_weights.unwrapped(content, Path("a.pth"))
    assert shared.n_reads == 1
    deepest: dict[str, Any] = {"model": {"a": {"b": {"c": {"d": ONE}}}}}
    assert foreign_weights._has_tensors(deepest["model"])
    assert not foreign_weights._has_tensors(deepest)


def test_names_are_translated_a_fixed_number_of_times() -> None:
    net, calls = by_name.build("resnet20", classes=7), list[str]()

    def translate(name: str) -> str:
        calls.append(name)
        return name.removeprefix("theirs.").removeprefix("mine.")

    weights = {f"theirs.{name}": tensor for name, tensor in net.state_dict().items()}
    weights |= {f"{part}.{n}": ONE for part in ("mine", "theirs") for n in range(50)}
    with pytest.raises(UserError, match="twice, under two names: mine.0 and theirs.0, mine.1 and"):
        foreign_weights.load_into(net, weights, "a.pth", translate)
    assert len(calls) <= 4 * len(weights)
