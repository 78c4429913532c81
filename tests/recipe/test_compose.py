"""Files and --set, merged: what is later wins, and every value knows where it came from."""

import itertools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.recipe import recipe_files
from distill.recipe.recipes import RecipeError, check_report, dumps, load
from distill.recipe.schema import Teacher

WHOLE = "[loss.hard]\n[train]\nepochs = 2\n"
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A project of its own in a temporary folder; writes a file and returns its path."""
    monkeypatch.setattr(recipe_files, "ROOT", tmp_path.resolve())
    monkeypatch.chdir(tmp_path)

    def at(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return at


def test_later_layers_override_earlier_ones(write: Write) -> None:
    write(
        "recipes/one.toml", f"{WHOLE}[optim]\nlr = 0.1\nmomentum = 0.1\nclip = 1\n[data]\nseed = 1"
    )
    write("recipes/ingredients/two.toml", "[optim]\nlr = 0.2\nmomentum = 0.2\nclip = 2")
    write("recipes/all.toml", 'compose = ["one", "two"]\n[optim]\nlr = 0.3\nmomentum = 0.3')
    resolved = load("all", ["optim.lr=0.4"])
    optim = resolved.recipe.optim
    assert (optim.lr, optim.momentum, optim.clip) == (0.4, 0.3, 2.0)
    where = {
        "optim.lr": "--set",
        "optim.momentum": "recipes/all.toml",
        "optim.clip": "recipes/ingredients/two.toml",
        "data.seed": "recipes/one.toml",
        "optim.name": "default",
    }
    assert {key: resolved.origins[key] for key in where} == where


def test_base_is_a_list_of_one(write: Write) -> None:
    write("recipes/one.toml", WHOLE)
    write("recipes/by_base.toml", 'base = "one"')
    write("recipes/by_list.toml", 'compose = ["one"]')
    assert load("by_base").recipe == load("by_list").recipe


def test_plus_composes_like_a_file(write: Write) -> None:
    write("recipes/one.toml", f"{WHOLE}[optim]\nlr = 0.1\nmomentum = 0.1")
    write("recipes/two.toml", "[optim]\nlr = 0.2")
    write("recipes/both.toml", 'compose = ["one", "two"]')
    path = write("elsewhere/three.toml", "[optim]\nclip = 3")
    assert load("one+two").recipe == load("both").recipe
    spot = load(f"one+{path}")
    assert (spot.recipe.optim.lr, spot.recipe.optim.clip) == (0.1, 3.0)
    assert spot.name == "one+three"


def test_unknown_values_of_composed_file_are_hidden(write: Write) -> None:
    """It may be no recipe: only the values of files that were named are shown."""
    write("mine/parts/creds.toml", 'token = "SECRET"\n[aws]\nkey = "SECRET"')
    path = write("mine/recipe.toml", f'compose = ["parts/creds.toml"]\n{WHOLE}')
    with pytest.raises(RecipeError) as fault:
        load(str(path))
    assert "token" in str(fault.value) and "SECRET" not in str(fault.value)


def test_path_in_file_is_relative_to_file(write: Write) -> None:
    write("mine/parts/base.toml", WHOLE)
    path = write("mine/recipe.toml", 'base = "parts/base.toml"')
    resolved = load(str(path))
    assert (resolved.name, resolved.recipe.train.epochs) == ("recipe", 2)
    assert resolved.origins["train.epochs"] == "mine/parts/base.toml"


def test_file_name_may_contain_a_plus(write: Write) -> None:
    write("a+b.toml", WHOLE)
    assert load("a+b.toml").name == "a+b"


def test_tables_merge_by_key_and_replace_lists(write: Write) -> None:
    write("recipes/one.toml", f"{WHOLE}[student]\nstages = 2\nblocks = [1, 2]\nwidth = 8")
    student = load("one", ["student.blocks=[2,1]"]).recipe.student
    assert student is not None
    assert (student.stages, student.blocks, student.width) == (2, (2, 1), 8)


def test_false_removes_inherited_table_and_all_its_keys(write: Write) -> None:
    write("recipes/one.toml", f"{WHOLE}[mix.cutmix]\nprob = 0.3\nalpha = 0.7")
    write("recipes/off.toml", 'base = "one"\n[mix]\ncutmix = false')
    write("recipes/again.toml", 'base = "off"\n[mix.cutmix]\nprob = 0.1')
    assert load("off").recipe.mix.cutmix is None
    assert load("one", ["mix.cutmix=false"]).recipe.mix.cutmix is None
    assert load("one", ["ema=false"]).recipe.ema is None  # there was none
    again = load("again")
    assert again.recipe.mix.cutmix is not None
    assert (again.recipe.mix.cutmix.prob, again.recipe.mix.cutmix.alpha) == (0.1, 1.0)
    assert again.origins["mix.cutmix.alpha"] == "default"


def test_false_of_a_boolean_is_a_value(write: Write) -> None:
    write("recipes/one.toml", WHOLE)
    assert load("one", ["optim.decay_norm=false"]).recipe.optim.decay_norm is False


@pytest.mark.parametrize(
    ("inherited", "override", "width", "channels"),
    [
        ("width = 8", "student.channels=[4,6]", None, (4, 6)),
        ("channels = [4, 6]", "student.width=8", 8, None),
    ],
)
def test_width_and_channels_drop_each_other(
    write: Write, inherited: str, override: str, width: int | None, channels: object
) -> None:
    write("recipes/one.toml", f"{WHOLE}[student]\nstages = 2\nblocks = 1\n{inherited}")
    student = load("one", [override]).recipe.student
    assert student is not None
    assert (student.width, student.channels) == (width, channels)


RESNET = 'network = "resnet"\nstages = 2\nblocks = 1\nwidth = 4'


@pytest.mark.parametrize("network", ["wrn", "timm/resnet18"])
def test_another_network_replaces_a_residual_teacher(write: Write, network: str) -> None:
    write("recipes/one.toml", f"{WHOLE}[teacher]\n{RESNET}")
    resolved = load("one", [f"teacher.network={network}"])
    assert resolved.recipe.teacher == Teacher(network=network)
    assert "teacher.stages" not in resolved.origins
    assert resolved.origins["teacher.depth"] == "default"


def test_a_residual_network_replaces_another_teacher(write: Write) -> None:
    write("recipes/one.toml", f"{WHOLE}[teacher]\ndepth = 16\nwiden = 2\nruns = ['a']")
    write("recipes/two.toml", f"[teacher]\n{RESNET}")
    teacher = Teacher(network="resnet", stages=2, blocks=1, width=4, runs=("a",))
    typed = [f"teacher.{line}" for line in RESNET.splitlines()]
    for spec, overrides in (("one+two", []), ("one", typed), ("one", typed[::-1])):
        recipe = load(spec, overrides).recipe
        assert recipe.teacher == teacher
        assert "depth" not in dumps(recipe)
    assert load("one+two", ["teacher.channels=[3,5]"]).recipe.teacher == Teacher(
        network="resnet", stages=2, blocks=1, channels=(3, 5), runs=("a",)
    )


def test_two_networks_in_one_layer_are_a_fault(write: Write) -> None:
    write("a.toml", f"{WHOLE}[teacher]\n{RESNET}\ndepth = 16")
    with pytest.raises(RecipeError, match=r"teacher.depth = 16 \(a.toml\) is a key of wrn"):
        load("a.toml")
    overrides = ["teacher.stages=2", "teacher.network=wrn"]
    with pytest.raises(RecipeError, match=r"teacher.stages = 2 \(--set\) is a key of resnet"):
        load("a.toml", overrides)


def test_width_and_channels_in_one_file_are_fault(write: Write) -> None:
    write("a.toml", f"{WHOLE}[student]\nstages = 2\nblocks = 1\nwidth = 8\nchannels = [8, 9]")
    with pytest.raises(RecipeError, match=r"student.width = 8 \(a.toml\) and channels = \[8, 9\]"):
        load("a.toml")


@pytest.mark.parametrize(
    ("override", "source"),
    [
        ("data.source=synthetic", "synthetic"),
        ("data.source=/data/my images", "/data/my images"),
        ('data.source="a=b"', "a=b"),
        ("data.source=a=b", "a=b"),
        (" data.source = 'x' ", "x"),
    ],
)
def test_a_bare_word_is_a_string(write: Write, override: str, source: str) -> None:
    write("recipes/one.toml", WHOLE)
    assert load("one", [override]).recipe.data.source == source


def test_the_last_of_two_overrides_wins(write: Write) -> None:
    write("recipes/one.toml", WHOLE)
    assert load("one", ["optim.lr=0.1", "optim.lr=0.2"]).recipe.optim.lr == 0.2
    assert load("one", ["ema.decay=0.5", "ema=false"]).recipe.ema is None


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("optim.lr", "--set optim.lr has no value; type key=value"),
        ("optim.lr=", "--set optim.lr= has no value; type key=value"),
        ("=0.1", "--set =0.1 has no key: '' is not one; type key=value"),
        ("optim..lr=0.1", r"--set optim..lr=0.1 has no key: 'optim..lr' is not one"),
        (
            "student.blocks=[4,4",
            r"--set student.blocks=\[4,4 is malformed: \[4,4 is not a TOML value",
        ),
        ('data.source="x', '--set data.source="x is malformed: "x is not a TOML value'),
        ("optim.lr=1\ntrain.epochs=3", r"is malformed: 1\\ntrain.epochs=3 is not a TOML value"),
    ],
)
def test_a_malformed_override_is_refused(write: Write, override: str, fault: str) -> None:
    write("recipes/one.toml", WHOLE)
    with pytest.raises(RecipeError, match=fault):
        load("one", [override])


def test_an_unknown_name_is_refused_with_the_nearest(write: Write) -> None:
    write("recipes/cutmix.toml", WHOLE)
    write("mine.toml", 'compose = ["cutmx", "nothing_like_it"]')
    with pytest.raises(RecipeError) as error:
        load("mine.toml")
    assert str(error.value).splitlines() == [
        "2 faults in mine.toml",
        "  recipe 'cutmx' (mine.toml) is not in recipes/; did you mean cutmix? "
        "`python cli.py recipes` lists them",
        "  recipe 'nothing_like_it' (mine.toml) is not in recipes/; "
        "`python cli.py recipes` lists them",
    ]


def test_one_name_for_two_files_is_refused(write: Write) -> None:
    write("recipes/one.toml", WHOLE)
    write("recipes/ingredients/one.toml", "")
    with pytest.raises(
        RecipeError,
        match="recipe one is two files, recipes/one.toml and recipes/ingredients/one.toml",
    ):
        load("one")


def test_cycle_is_refused_with_its_path(write: Write) -> None:
    write("recipes/a.toml", f'base = "b"\n{WHOLE}')
    write("recipes/b.toml", 'base = "c"')
    write("recipes/c.toml", 'base = "b"')
    with pytest.raises(
        RecipeError,
        match="b.toml is composed of itself: recipes/b.toml -> recipes/c.toml -> recipes/b.toml;",
    ):
        load("a")


def test_same_part_twice_is_not_a_cycle(write: Write) -> None:
    write("recipes/one.toml", WHOLE)
    write("recipes/two.toml", 'base = "one"')
    assert load("one+two+one").recipe.train.epochs == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[optim]\nlr = = 1", r"a.toml is not TOML: .* \(at line 2, column 6\)"),
        ("[optim]\nlr = [1,", r"a.toml is not TOML: .* \(at line 2, the end\)"),
        ('base = "b"\ncompose = ["b"]', "base and compose are both in a.toml"),
        ("compose = [3]", r"3 \(a.toml\) is not the name of a recipe"),
        ("base = true", r"true \(a.toml\) is not the name of a recipe"),
        ('base = "b.toml"', "b.toml does not exist; `python cli.py recipes` lists them"),
        ('base = "folder.toml"', "folder.toml cannot be read: .*[Dd]irectory"),
        ('base = "latin.toml"', "latin.toml cannot be read: .*utf-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(write: Write, text: str, fault: str) -> None:
    write("recipes/b.toml", WHOLE)
    write("latin.toml", "").write_bytes('claim = "é"'.encode("latin-1"))
    write("folder.toml/x", "")
    write("a.toml", text)
    with pytest.raises(RecipeError, match=fault):
        load("a.toml")


def test_mistyped_path_names_a_similar_file(write: Write) -> None:
    mine = write("recipe_mine.toml", "")
    with pytest.raises(RecipeError) as error:
        load("recipe_min.toml")
    [fault] = error.value.faults
    assert fault.startswith("recipe_min.toml does not exist; did you mean ")
    assert "recipe_mine.toml? `python cli.py recipes` lists them" in fault, mine


def test_unreadable_part_neither_hides_nor_adds_faults(write: Write) -> None:
    write("recipes/one.toml", "[optim]\nlrr = 1")
    with pytest.raises(RecipeError) as error:
        load("one+gone", ["a"])
    assert [fault.split(";")[0] for fault in error.value.faults] == [
        "recipe 'gone' is not in recipes/",
        "--set a has no value",
        "optim.lrr = 1 (recipes/one.toml) is not a key",
    ]


@pytest.mark.long
def test_ingredients_of_different_tables_commute() -> None:
    parts = ("mixup", "cutmix", "label_smoothing", "ema")
    orders = list(itertools.permutations(parts))
    recipes = [load("+".join(("tiny", *order))).recipe for order in orders]
    assert len(orders) == 24
    assert all(recipe == recipes[0] for recipe in recipes)
    assert recipes[0] != load("tiny").recipe


@pytest.mark.long
def test_any_two_ingredients_that_touch_different_keys_commute() -> None:
    """Of all that are shipped: order matters only where both say something of the same key."""
    folder = Path(__file__).parents[2] / "recipes/ingredients"
    keys = {path.stem: keys_of(tomllib.loads(path.read_text())) for path in folder.glob("*.toml")}
    pairs = [
        (a, b) for a, b in itertools.combinations(sorted(keys), 2) if not overlap(keys[a], keys[b])
    ]
    assert len(pairs) > 60
    for a, b in pairs:
        assert load_or_fault(f"kd+{a}+{b}") == load_or_fault(f"kd+{b}+{a}"), (a, b)


def keys_of(tables: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a file, its lab note aside."""
    found = set()
    for name, value in tables.items():
        if prefix + name != "about":
            inner = isinstance(value, dict) and value
            found |= keys_of(value, f"{prefix}{name}.") if inner else {prefix + name}
    return found


def overlap(a: set[str], b: set[str]) -> bool:
    """Whether a key is in both sets, or a table in one and a key of it in the other."""
    return any(f"{x}.".startswith(f"{y}.") or f"{y}.".startswith(f"{x}.") for x in a for y in b)


def load_or_fault(spec: str) -> object:
    """The recipe, or its faults: mixing three ways at once is refused in any order."""
    try:
        return load(spec).recipe
    except RecipeError as error:
        return sorted(error.faults)


def test_ingredients_of_one_key_do_not_commute(write: Write) -> None:
    write("recipes/one.toml", f"{WHOLE}[optim]\nlr = 0.1")
    write("recipes/two.toml", "[optim]\nlr = 0.2")
    assert load("one+two").recipe != load("two+one").recipe


def test_a_part_that_replaces_a_network_is_noted() -> None:
    resolved = load("fast_teacher+two_cores")
    assert resolved.replaced == {
        "teacher": "two_cores replaces the network of fast_teacher: ResNet [1, 1, 1] 128-384-512 "
        "pooled -> WRN-16-2"
    }
    [note] = load("kd_cutmix+ema+two_cores").replaced.values()
    assert note == (
        "two_cores replaces the network of kd_cutmix+ema: ResNet [4, 4, 3] 64-128-256 -> "
        "ResNet [1, 1, 1] 16-32-64"
    )


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        ("kd+cutmix+ema", []),  # no part describes a network again
        ("teacher_wrn+mixup", ["teacher.depth=16"]),  # --set is meant
        ("student_alone", []),  # a recipe and what it is based on are one part
    ],
)
def test_part_without_new_network_is_not_noted(spec: str, overrides: list[str]) -> None:
    assert load(spec, overrides).replaced == {}


def test_faulty_network_is_fault_and_no_note(write: Write) -> None:
    write("a.toml", f"{WHOLE}[student]\nstages = 2\nblocks = 1\nwidth = 8")
    write("b.toml", "[student]\nstages = 0")
    with pytest.raises(RecipeError, match="student.stages = 0"):
        load("a.toml+b.toml")


KD_REMOVED = "recipes/at.toml removes loss.kd of recipes/kd.toml; for both terms type "
DKD_REMOVES = "recipes/dkd.toml removes loss.kd of recipes/kd.toml; for both terms type "


@pytest.mark.parametrize(
    ("spec", "overrides", "removed"),
    [
        ("kd+at", [], [f"{KD_REMOVED}at+kd"]),
        ("kd+ema+at", [], [f"{KD_REMOVED}at+kd+ema"]),
        ("kd+dkd+at", [], [f"{DKD_REMOVES}dkd+at+kd"]),
        ("at+kd", [], []),
        ("at", [], []),  # a recipe and its base are one part
        ("kd+at", ["loss.kd.weight=1"], []),  # --set brings it back
    ],
)
def test_removed_loss_term_of_another_part_is_noted(
    spec: str, overrides: list[str], removed: list[str]
) -> None:
    assert list(load(spec, overrides).removed) == removed
    for note in removed:
        assert "kd" in load(note.rpartition(" ")[2]).recipe.loss.terms()


@pytest.mark.parametrize("loss", ["loss = 3", "[loss]\nkd = 3"])
def test_invalid_loss_is_fault_and_no_note(write: Write, loss: str) -> None:
    write("b.toml", loss)
    with pytest.raises(RecipeError, match="= 3"):
        load("kd+b.toml")


@pytest.mark.parametrize("spec", ["kd++ema", "kd+", "+kd", ""])
def test_an_empty_name_is_refused(spec: str) -> None:
    with pytest.raises(RecipeError, match="a recipe's name is empty: type one before, between"):
        load(spec)


def test_check_prints_removed_loss_terms() -> None:
    assert check_report("kd+at") == f"kd+at: no faults\nnote: {KD_REMOVED}at+kd"


TERMS = "--set loss.dkd=false removes nothing: the terms of the recipe are hard, kd"
CUTMIX = "--set mix.cutmix=false removes nothing: the recipe has no [mix.cutmix]"


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["loss.dkd=false"], [TERMS]),
        (["loss={dkd=false}"], [TERMS]),
        (["mix.cutmix=false"], [CUTMIX]),
        (["loss.at.weight=1", "loss.at=false"], []),
        (["loss.kd=false"], []),
        (["augment.flip.alternate=false"], []),  # a value, no table
    ],
)
def test_false_that_removes_nothing_is_noted(overrides: list[str], idle: list[str]) -> None:
    assert list(load("kd", overrides).idle) == idle


@pytest.mark.parametrize("spec", ["~nouser/x.toml", "~nouser/x+tiny", "{}+~nouser/x.toml"])
def test_unknown_user_in_path_is_fault(write: Write, spec: str) -> None:
    with pytest.raises(RecipeError, match="~nouser/x"):
        load(spec.format(write("a.toml", "")))


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_quotes_before_the_end_hide_no_key(quotes: str) -> None:
    """A string of several lines may end with two quotes of its own: five in all."""
    dotted = ".".join(["a"] * 2000)
    for end in (quotes, quotes + quotes[0], quotes + quotes[:2]):
        first, second = f"{quotes}a{end}", f"{quotes}\n{quotes}"
        assert tomllib.loads(f"z = {{x = {first}, y = {second}}}\nb.c = 1")["b"] == {"c": 1}
        assert recipe_files.has_long_key(f"z = {{x = {first}, y = {second}}}\n{dotted} = 1")
        assert not recipe_files.has_long_key(f"x = {quotes}{dotted}{end}\ny = 1 # {dotted}")
