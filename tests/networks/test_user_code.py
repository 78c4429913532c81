"""Networks of the user's own code: allowed, built, checked, and refused with one message."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.models.features import FeatureExtractor
from networks import user_code
from networks.network_catalogue import is_own, split_own

CODE = """
import helper
from os.path import join as joined
from torch import nn
import torch

def small(width=4, num_classes=10):
    assert helper.VALUE == 7
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

class Any(nn.Linear):
    def __init__(self, **options):
        super().__init__(3, options["classes"])
    def forward(self, images):
        return super().forward(images.mean((2, 3)))

class Named(nn.Linear):
    def __init__(self, num_classes=3, **options):
        super().__init__(3, num_classes)
    def forward(self, images):
        return super().forward(images.mean((2, 3)))

class Flat(nn.Flatten):
    def __init__(self, classes): super().__init__()

class Pair(nn.Linear):
    def __init__(self, classes): super().__init__(3, classes)
    def forward(self, images): return images, images

class Wide(Any):
    def __init__(self, classes): super().__init__(classes=classes + 1)

class Endless(Any):
    def forward(self, images): return super().forward(images) / 0

class Large(Any):
    def forward(self, images): return super().forward(images[:, :, 40])

def fails(classes): raise RuntimeError("no luck")
def number(classes): return classes
def without(): return nn.Linear(3, 3)
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    """A file of networks beside a module that it imports; its code is allowed."""
    (tmp_path / "helper.py").write_text("VALUE = 7\n")
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    user_code.allow(f"{path}:small")
    return path


def built(nets: Path, name: str, **options: object) -> user_code.OwnNetwork:
    given = {"normalize": False, "classes": 7} | options
    arguments = given.pop("arguments", {})
    return user_code.build(f"{nets}:{name}", arguments, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        ("nets.py:small", ("nets.py", "small")),
        ("../a b/nets.py:Small", ("../a b/nets.py", "Small")),
        ("package.module:net", ("package.module", "net")),
        ("timm/resnet18", ("", "")),
        ("nets.py:", ("", "")),
        ("nets.py:a.b", ("", "")),
        ("a-b:net", ("", "")),
        ("a\nb.py:net", ("", "")),
    ],
)
def test_name_has_a_file_and_a_callable(network: str, parts: tuple[str, str]) -> None:
    assert split_own(network) == parts
    assert is_own(network) == (parts != ("", ""))


def test_arguments_and_classes_reach_the_code(nets: Path) -> None:
    net = built(nets, "small", arguments={"width": 6})
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert sum(p.numel() for p in net.parameters()) == 3 * 6 * 9 + 6 + 6 * 7 + 7
    assert built(nets, "Any").net.out_features == 7  # keyword arguments of any name
    assert built(nets, "Named").net.out_features == 7  # its own name before any other
    assert net.training


def test_normalised_images_are_given_on_request(nets: Path) -> None:
    plain, normalised = built(nets, "Any"), built(nets, "Any", normalize=True)
    normalised.net.load_state_dict(plain.net.state_dict())
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
    assert torch.allclose(normalised(images), plain((images - mean) / std), atol=1e-6)


def test_every_submodule_is_a_copied_tap(nets: Path) -> None:
    """The ReLU changes the convolution's output in place, but not its tap."""
    _, taps = FeatureExtractor(built(nets, "small"), ["0", "1"])(torch.rand(2, 3, 32, 32))
    assert taps["0"].min() < 0
    assert torch.equal(taps["0"].relu(), taps["1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", r"nets\.py has no class or function nosuch; it has small, Any, Named, Flat"),
        (
            "joined",
            r"nets\.py has no class or function joined: the file only imports .*; it has small",
        ),
        ("__class__", r"nets\.py has no class or function __class__; it has small"),
        ("Flat", "Flat has no parameters, so it cannot be trained"),
        ("Pair", "Pair gave tuple for two images instead of logits"),
        ("Wide", r"Wide gave \[2, 8\] for two images instead of logits \[2, 7\]"),
        ("Endless", "Endless gave logits that are not finite"),
        ("Large", r"Large does not take images \[B, 3, 32, 32\]: IndexError"),
        ("fails", r"fails cannot be built: RuntimeError: no luck\.\nIt was called with classes=7"),
        ("number", r"number returned int instead of a torch\.nn\.Module"),
        ("without", r"without takes no number of classes: none of its arguments is called classes"),
    ],
)
def test_wrong_network_is_one_message(nets: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(nets, name)


def test_imported_function_is_not_called(tmp_path: Path) -> None:
    """Its arguments would come from a recipe, which may be a stranger's."""
    called, path = tmp_path / "called", tmp_path / "nets.py"
    (tmp_path / "imported_by_nets.py").write_text(
        "import pathlib\ndef load(classes, file): pathlib.Path(file).touch()\n"
    )
    path.write_text("from imported_by_nets import load\n")
    user_code.allow(f"{path}:small")
    with pytest.raises(
        UserError, match=r"has no class or function load: the file only imports that name"
    ):
        built(path, "load", arguments={"file": str(called)})
    assert not called.exists()


def test_wrong_argument_is_named(nets: Path) -> None:
    with pytest.raises(UserError, match=r"TypeError.*\n.*num_classes=7, wdith=3"):
        built(nets, "small", arguments={"wdith": 3})


def test_code_that_fails_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def net(:\n")
    user_code.allow(f"{path}:net")
    with pytest.raises(UserError, match=r"broken\.py cannot be run: SyntaxError"):
        built(path, "net")


def test_code_is_run_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trace = tmp_path / "nets.py", tmp_path / "trace"
    path.write_text(f"open({str(trace)!r}, 'w').close()\n{CODE.replace('import helper', '')}")
    with pytest.raises(UserError, match=r"which would be run\.\nRead it; if you trust it, type"):
        built(path, "Any")
    assert not trace.exists()
    monkeypatch.setenv("UNDERSTUDY_CODE", f"elsewhere.py:{path}")
    built(path, "Any")
    assert trace.exists()


def test_module_is_imported_only_if_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="defined by the code of torch.nn"):
        user_code.source_of("torch.nn.modules.linear:Linear")
    monkeypatch.setenv("UNDERSTUDY_CODE", "torch.nn.modules.linear")
    assert user_code.source_of("torch.nn.modules.linear:Linear").path.name == "linear.py"


def test_other_code_than_recorded_is_refused(nets: Path) -> None:
    recorded = hashlib.sha256(nets.read_bytes()).hexdigest()
    assert isinstance(built(nets, "Any", sha256=recorded), nn.Module)
    nets.write_text(nets.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"not the code that the run began with.*\nRestore that"):
        built(nets, "Any", sha256=recorded)


def test_missing_file_is_named(nets: Path) -> None:
    nets.unlink()
    with pytest.raises(UserError, match=r"nets\.py does not exist; the network .*:Any is defined"):
        built(nets, "Any")
