"""Whatever is typed or read ends in a recipe or a message, never in a traceback."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data.sources import cifar, load_data_set
from distill.data.sources.cifar import CIFAR10
from distill.errors import UserError
from distill.models import checkpoint
from distill.models.checkpoint import DamagedCheckpoint
from distill.recipe import recipes
from distill.recipe.recipe_files import shipped_paths
from distill.recipe.validation import keys
from tests.data.sources.test_cifar import pack, write

often = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What a TOML value may be, and what it may not.
scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.sampled_from(["cutmix", "", "0x10", "1e400", "[", "{a=", '"', "nan"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
paths = st.sampled_from(sorted(keys())) | st.text(max_size=15)
overrides = st.lists(
    st.tuples(paths, values | st.just("")).map(lambda pair: f"{pair[0]}={_toml(pair[1])}")
    | st.text(max_size=20),
    max_size=4,
)
names = st.sampled_from([path.stem for path in shipped_paths()]) | st.text(max_size=10)
damages = st.tuples(st.sampled_from(["cut", "turned"]), st.floats(0, 1, exclude_max=True))


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(ask: Callable[[], object]) -> None:
    """Anything but a result or a UserError fails the test by its traceback."""
    try:
        ask()
    except UserError as fault:
        assert str(fault).strip()


@pytest.mark.long
@often
@given(st.lists(names, min_size=1, max_size=3), overrides)
def test_any_composition_loads_or_is_refused(parts: Sequence[str], sets: list[str]) -> None:
    in_words(lambda: recipes.load("+".join(parts), sets))


@pytest.mark.long
@often
@given(st.sampled_from([p.read_text() for p in shipped_paths()]), st.data())
def test_any_damaged_recipe_loads_or_is_refused(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 30)))
    between = data.draw(st.text(max_size=30))
    in_words(lambda: recipes.loads(text[:at] + between + text[until:], "damaged.toml"))


@pytest.mark.long
@often
@given(st.text(max_size=300))
def test_any_text_loads_or_is_refused(text: str) -> None:
    in_words(lambda: recipes.loads(text, "text.toml"))


def damaged(content: bytes, how: str, where: float) -> bytes:
    """Cut there, or one bit of the byte there turned."""
    at = int(where * len(content))
    if how == "cut":
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A checkpoint with some tensors."""
    checkpoint.save(tmp_path / "last", {"student": {"weight": torch.ones(64, 9)}}, {"step": 7})
    return tmp_path / "last"


@pytest.mark.long
@often
@given(st.sampled_from(["state.pt", "progress.json"]), damages)
def test_any_damage_to_a_checkpoint_is_noticed(
    last: Path, name: str, damage: tuple[str, float]
) -> None:
    place = last.with_name("harmed")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(last, place)
    content = (place / name).read_bytes()
    (place / name).write_bytes(damaged(content, *damage))
    try:
        tensors, progress = checkpoint.load(place)
    except DamagedCheckpoint as fault:
        assert "is damaged" in str(fault)
    else:  # what changed was the line's end
        assert progress["step"] == 7 and tensors["student"]["weight"].eq(1).all()


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """The official layout, packed, with four images a file."""
    return pack(write(tmp_path, CIFAR10), tmp_path / "a.tar.gz").read_bytes()


@pytest.mark.long
@often
@given(damages)
def test_any_damaged_archive_loads_or_is_refused(
    archive: bytes, tmp_path: Path, damage: tuple[str, float]
) -> None:
    """Refused in words; or read as it was, where the bit is one that says nothing."""
    path = tmp_path / "harmed.tar.gz"

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        return load_data_set.load(str(path), "train").fingerprint

    whole = read(archive)
    in_words(lambda: _same(read(damaged(archive, *damage)), whole))


def _same(found: str, wanted: str) -> None:
    assert found == wanted, "other pixels, in silence"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The official layout, unpacked."""
    return write(tmp_path / "set", CIFAR10)


@pytest.mark.long
@often
@given(st.binary(max_size=400))
def test_any_bytes_as_batch_load_or_are_refused(folder: Path, content: bytes) -> None:
    (folder / "data_batch_1").write_bytes(content)
    in_words(lambda: cifar.load(cifar.Batches(folder, CIFAR10), "train"))


@pytest.mark.long
@often
@given(st.binary(max_size=400))
def test_any_bytes_as_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.tar.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="any.tar.gz"):
        load_data_set.load(str(path), "test")
