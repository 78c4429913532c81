"""What is shipped, and what can be done with a resolved recipe."""

import hashlib
import json
import pickle
import re
import shlex
import subprocess
import sys
import tomllib
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.recipe import (
    check_recipe_role,
    compare_recipes,
    find_teacher_recipe,
    recipe_files,
    recipe_variants,
    recipes,
)
from distill.recipe.count_parameters import count_networks
from distill.recipe.recipe_fingerprint import LATER_KEYS, recipe_fingerprint
from distill.recipe.recipes import Recipe, RecipeError, load
from distill.recipe.validation import leaves
from students.design import Design

REPO = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(REPO / "recipes")
    for folder in ("", "ingredients", "published", "reports")
    for path in (REPO / "recipes" / folder).glob("*.toml")
)
ALONE = [path.stem for path in FILES if path.parent.name != "ingredients"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_shipped_recipe_loads(path: Path) -> None:
    base = "crd_cifar100" if path.stem.startswith("published_") else "kd"
    spec = f"{base}+{path.stem}" if path.parent.name == "ingredients" else path.stem
    resolved = load(spec)
    assert resolved.name == spec
    assert recipes.loads(recipes.dumps(resolved.recipe), spec) == resolved.recipe


def test_loaded_recipes_are_all_files_in_the_folders() -> None:
    assert {"kd.toml", "tiny.toml", "ingredients/cutmix.toml"} <= {p.as_posix() for p in FILES}
    found = recipes.shipped()
    assert sorted(path.relative_to(REPO / "recipes") for _, path, _ in found) == FILES
    print(*(name for name, _, _ in found))


def test_every_lab_note_is_filled_in() -> None:
    for name, path, about in recipes.shipped():
        texts = [value for _, value in about if isinstance(value, str)]
        assert len(texts) == 6 + (about.control is not None)
        assert all(texts), f"{path}: an empty line in [about]"
        assert name in about.command, path


def test_a_measured_accuracy_is_that_of_the_text() -> None:
    measured = {n: a for n, _, a in recipes.shipped() if a.measured_accuracy is not None}
    assert measured.keys() >= {"fast_teacher", "two_cores"}
    for name, about in measured.items():
        assert re.match(rf"{about.measured_accuracy:.2f} (± [\d.]+ )?%", about.accuracy), name
        assert f", {about.seeds} seeds" in about.accuracy or about.seeds == 1, name
    made = json.loads((REPO / "results" / "two_cores_kd_cutmix.json").read_text())["runs"]
    assert round(100 * made["mean"], 2) == measured["two_cores"].measured_accuracy
    assert made["n"] == measured["two_cores"].seeds
    alone = json.loads((REPO / "results" / "two_cores_kd_cutmix.json").read_text())["control"]
    assert round(100 * alone["mean"], 2) == measured["two_cores"].control_accuracy
    assert alone["n"] == measured["two_cores"].seeds
    made = json.loads((REPO / "results" / "fast_teacher.json").read_text())
    accuracy = round(100 * made["metrics"]["top1/test"], 2)
    assert accuracy == measured["fast_teacher"].measured_accuracy


def test_two_cores_commands_match_the_measurement() -> None:
    """Every key that results/ has of the runs; keys that came later are at their defaults."""
    made = json.loads((REPO / "results" / "two_cores_kd_cutmix.json").read_text())
    about = next(about for name, _, about in recipes.shipped() if name == "two_cores")
    words = shlex.split(about.command)
    sets = [value for option, value in pairwise(words) if option == "--set"]
    resolved = compare_recipes.values(load(words[words.index("--recipe") + 1], sets).recipe)
    measured = dict(leaves(made["recipe"]))
    ours = {"data.source", "teacher.runs", "teacher.depth", "teacher.widen", "train.compile"}
    for key in measured.keys() - ours:  # paths; a teacher's own keys are in its run
        assert resolved[key] == measured[key], key
    assert resolved["loss.kd.temperature"] == 4.0

    spec, *options = shlex.split(about.teacher)
    matched = load(spec, [option for option in options if option != "--set"]).recipe
    assert (matched.mix.cutmix, matched.train.epochs) == (None, made["teacher"][0]["epochs"])
    assert find_teacher_recipe.teacher_for("kd_cutmix+two_cores") == about.teacher
    for text in (about.command.partition(" distill ")[2], about.teacher):
        assert text in (REPO / "README.md").read_text()
        assert text in (REPO / "results" / "README.md").read_text()


def test_a_name_means_one_file() -> None:
    names = [path.stem for path in FILES]
    assert len(set(names)) == len(names)


def test_student_alone_is_the_control_of_kd_cutmix() -> None:
    distilled, alone = load("kd_cutmix").recipe, load("student_alone").recipe
    control = recipe_variants.control_recipe(distilled)
    assert compare_recipes.differences(control, alone) == []
    assert recipe_fingerprint(control) == recipe_fingerprint(alone)
    keys = {line.split(":")[0] for line in compare_recipes.differences(distilled, alone)}
    assert keys == {"loss.hard.weight", "loss.kd"}


def test_control_adds_a_term_on_labels() -> None:
    loss = recipe_variants.control_recipe(load("tiny", ["loss.hard=false"]).recipe).loss
    assert loss.kd is None
    assert loss.hard is not None
    assert loss.hard.weight == 1.0


def test_shipped_recipes_have_their_documented_values() -> None:
    assert (
        count_networks("kd")["parameters"] == 4_697_162
    )  # reference count of [4, 4, 3] 64-128-256
    matching = load("function_matching").recipe
    assert matching.mix.mixup is not None
    assert matching.mix.cutmix is not None
    assert matching.mix.mixup.prob + matching.mix.cutmix.prob == 1.0
    assert matching.loss.hard is not None
    assert matching.loss.hard.weight == 0
    teacher = load("teacher_wrn").recipe
    assert teacher.loss.hard is not None
    assert teacher.loss.hard.label_smoothing == 0
    check_recipe_role.check_teacher(load("teacher_wrn"))
    check_recipe_role.check_teacher(load("teacher_wrn+quickstart"))
    assert load("teacher_wrn+quickstart").recipe.teacher == load("kd+quickstart").recipe.teacher


@pytest.mark.parametrize("name", ["kd", "teacher_wrn"])
def test_ricap_disables_only_the_random_crop(name: str) -> None:
    before = load(name, ["mix.cutmix=false"]).recipe
    after = load(f"{name}+ricap", ["mix.cutmix=false"]).recipe
    assert before.augment.crop is not None
    assert before.augment.flip is not None
    assert after.augment == before.augment.model_copy(update={"crop": None})
    assert after.mix.ricap is not None
    assert (after.mix.ricap.prob, after.mix.ricap.beta) == (1.0, 0.3)
    with_ricap = load(f"{name}+ricap", ["mix.cutmix=false", "augment.crop.padding=4"]).recipe
    assert with_ricap.augment == before.augment


def test_label_smoothing_ingredient_is_a_hundredth() -> None:
    hard = load("student_alone+label_smoothing").recipe.loss.hard
    assert hard is not None
    assert hard.label_smoothing == 0.01


@pytest.mark.parametrize("name", ["kd", "kd_cutmix", "student_alone", "function_matching", "tiny"])
def test_every_student_stays_under_five_million(name: str) -> None:
    check_recipe_role.check_student(load(name))
    counted = count_networks(name)
    assert counted["parameters"] < 5_000_000
    assert counted["within_budget"]


def test_student_over_budget_is_counted_and_not_trained() -> None:
    overrides = ["student.width=128"]
    counted = count_networks("kd", overrides)
    design = Design.of(stages=3, blocks=[4, 4, 3], width=128)
    assert not counted["within_budget"]
    assert (counted["parameters"], counted["macs"]) == (design.parameters, design.macs)
    with pytest.raises(RecipeError, match="student.max_params = 5000000 .* 18,765,962 parameters"):
        load("kd", overrides)
    with pytest.raises(RecipeError, match="student.kernel = 2"):
        count_networks("kd", ["student.kernel=2"])


def test_recipe_without_student_is_refused_by_distill() -> None:
    with pytest.raises(RecipeError, match=r"1 fault in teacher_wrn\n  student is missing; distill"):
        check_recipe_role.check_student(load("teacher_wrn"))
    with pytest.raises(RecipeError, match="student is missing"):
        count_networks("teacher_wrn", ["teacher.network=timm/resnet18"])
    with pytest.raises(RecipeError, match="type train-teacher --recipe fast_teacher$"):
        check_recipe_role.check_student(load("fast_teacher"))
    check_recipe_role.check_teacher(load("fast_teacher"))


@pytest.mark.parametrize(
    ("name", "is_noted"),
    [("teacher_wrn+quickstart", True), ("kd+teacher_wrn", False), ("student_alone", False)],
)
def test_teacher_recipe_for_a_student_is_noted(name: str, is_noted: bool) -> None:
    notes = list(check_recipe_role.note_on_teacher_recipe(load(name)))
    note = (
        "teacher_wrn is a recipe for teachers: distill trains the student alone, without a "
        "teacher; for the teacher type train-teacher --recipe teacher_wrn+quickstart"
    )
    assert notes == [note] * is_noted


def test_train_teacher_refuses_recipe_with_a_teacher() -> None:
    with pytest.raises(RecipeError) as error:
        check_recipe_role.check_teacher(load("kd"))
    assert str(error.value).splitlines() == [
        "2 faults in kd",
        "  teacher is missing; train-teacher needs a [teacher] table",
        "  loss.kd (recipes/kd.toml) needs a teacher, but train-teacher has none; "
        "type --set loss.kd=false --set loss.hard.weight=1",
    ]
    check_recipe_role.check_teacher(load("tiny", ["loss.kd=false"]))


def test_a_claim_is_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "kd"\n[about]\nclaim = "mine"\n')
    assert load("kd").recipe.about.claim.startswith("Hinton")
    mine = load(str(path), ["about.minutes='3'"])
    assert mine.recipe.about == recipes.About(claim="mine", minutes="3")
    assert mine.origins["about.claim"] == str(path)
    assert mine.origins["about.teacher"] == "default"
    assert load("kd+cutmix").recipe.about == recipes.About()


def test_every_value_has_an_origin() -> None:
    resolved = load("kd_cutmix+quickstart", ["train.seed=3"])
    assert set(resolved.origins.values()) == {
        "recipes/kd.toml",
        "recipes/kd_cutmix.toml",
        "recipes/ingredients/cutmix.toml",
        "recipes/ingredients/ema.toml",
        "recipes/ingredients/quickstart.toml",
        "--set",
        "default",
    }
    assert resolved.origins["train.seed"] == "--set"
    assert resolved.origins["loss.kd.temperature"] == "recipes/kd_cutmix.toml"
    assert "optim.clip" not in resolved.origins  # it is not set and has no default


def test_a_run_reads_the_recipe_it_wrote(tmp_path: Path) -> None:
    recipe = load("kd_cutmix", ["student.channels=[8,16,24]"]).recipe
    path = tmp_path / "recipe.toml"
    path.write_text(recipes.dumps(recipe))
    assert "channels = [8, 16, 24]\n" in path.read_text()
    assert recipes.read(path) == recipe
    path.write_text(recipes.dumps(recipe).replace("lr =", "lrr ="))
    with pytest.raises(RecipeError, match=r"optim.lrr = 0.2 .*recipe.toml\) is not a key"):
        recipes.read(path)
    with pytest.raises(RecipeError, match="gone.toml does not exist"):
        recipes.read(tmp_path / "gone.toml")
    with pytest.raises(RecipeError, match="x is not TOML: .*line 2"):
        recipes.loads("a = 1\nb = = 2", "x")


def test_resolution_is_one_line_or_absent() -> None:
    plain, rising = load("kd").recipe, load("kd", ["train.resolution=[[0, 20], [0.5, 32]]"]).recipe
    text = recipes.dumps(rising)
    assert "\nresolution = [[0.0, 20], [0.5, 32]]\n" in text
    assert recipes.loads(text, "again") == rising
    assert "resolution" not in recipes.dumps(plain)
    assert recipe_fingerprint(rising) != recipe_fingerprint(plain)
    assert compare_recipes.differences(plain, rising) == [
        "train.resolution: absent -> [[0.0, 20], [0.5, 32]]"
    ]


@pytest.mark.long
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lr=st.floats(min_value=1e-12, max_value=1e6),
    source=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    blocks=st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_any_recipe_survives_being_written(lr: float, source: str, blocks: list[int]) -> None:
    recipe = load("tiny", [f"optim.lr={lr!r}", f"student.blocks={blocks}"]).recipe
    recipe = recipe_variants.with_teacher(
        recipe_variants.with_source(recipe, source), [source, ",\n]", "[\n    "]
    )
    again = recipes.loads(recipes.dumps(recipe), "again")
    assert again == recipe
    assert recipe_fingerprint(again) == recipe_fingerprint(recipe)


def test_the_fingerprint_is_of_what_is_trained() -> None:
    kd = load("kd").recipe
    same = load("kd", ["about.claim=another", "optim.lr=0.2", "train.seed=0"]).recipe
    other = load("kd", ["optim.lr=0.3"]).recipe
    assert len(recipe_fingerprint(kd)) == 64
    assert recipe_fingerprint(kd) == recipe_fingerprint(same) != recipe_fingerprint(other)
    assert recipe_fingerprint(load("kd+cutmix+ema").recipe) == recipe_fingerprint(
        load("kd_cutmix").recipe
    )


@pytest.mark.parametrize(
    ("spec", "overrides", "fingerprint"),
    [
        ("teacher_wrn", [], "fd24cf9d383d5538486cd27eb46cf297dee4f2ff8996ffc7ca96bb51cd250a52"),
        (
            "teacher_wrn",
            ["teacher.network=timm/resnet18"],
            "13d16e2acdd986bf2247ade2d95de34c78da95fa2729ee8d78a58941ea27831f",
        ),
        ("kd+quickstart", [], "009aae711aff1ddd4ad94779f3f65956a975ba395ed5911e1a9b79dff0f35dbf"),
    ],
)
def test_older_fingerprints_are_unchanged(
    spec: str, overrides: list[str], fingerprint: str
) -> None:
    """As they were before [teacher] had the keys of a residual network."""
    recipe = load(spec, overrides).recipe
    assert recipe_fingerprint(recipe) == fingerprint
    assert recipe_fingerprint(recipes.loads(recipes.dumps(recipe), "again")) == fingerprint


def test_a_residual_teacher_is_written_whole() -> None:
    """Every default of its design is in the run's recipe and in the fingerprint."""
    recipe = load("fast_teacher").recipe
    again = recipes.loads(recipes.dumps(recipe), "again")
    assert again == recipe
    written = {key for key in compare_recipes.values(recipe) if key.startswith("teacher.")}
    assert {"teacher.network", "teacher.kernel", "teacher.norm_scale"} <= written
    assert not {"teacher.depth", "teacher.widen", "teacher.dropout"} & written
    wider = load("fast_teacher", ["teacher.skip_kernel=[1,1,1]"]).recipe
    assert recipe_fingerprint(wider) != recipe_fingerprint(recipe)


def test_a_residual_teacher_is_counted() -> None:
    counted = count_networks("fast_teacher")
    assert counted == {
        "recipe": "fast_teacher",
        "teacher": "ResNet [1, 1, 1] 128-384-512 pooled",
        "teacher_parameters": 9_918_786,
        "teacher_trainable": 9_915_426,
        "teacher_macs": 451_967_264,
    }
    resnet = ["teacher.network=resnet", "teacher.stages=3", "teacher.blocks=[4,4,3]"]
    both = count_networks("kd", [*resnet, "teacher.width=64"])
    alone = count_networks("kd")
    assert {key: both[key] for key in alone} == alone
    for key in ("parameters", "trainable", "macs"):
        assert both[f"teacher_{key}"] == alone[key]


def test_a_wide_residual_teacher_is_counted() -> None:
    """36.5 million parameters by table 4 of the paper, 5.2433 billion MACs by docs/cluster.md."""
    counted = count_networks("teacher_wrn")
    assert counted == {
        "recipe": "teacher_wrn",
        "teacher": "WRN-28-10",
        "teacher_parameters": 36_479_194,
        "teacher_trainable": 36_479_194,
        "teacher_macs": counted["teacher_macs"],
    }
    assert round(counted["teacher_macs"] / 1e9, 4) == 5.2433
    both = count_networks("kd_cutmix+two_cores")
    assert both["parameters"] == 78_042 and both["teacher_parameters"] == 691_674


def test_defaults_of_later_keys_leave_old_fingerprints() -> None:
    tiny = load("tiny").recipe
    before = tiny.model_dump(mode="json", exclude={"about"}, exclude_none=True)
    for key in ("draw", "mirror", "weights"):
        del before["teacher"][key]
    for key in ("network", "zero_gamma"):
        del before["student"][key]
    del before["loss"]["kd"]["standardise"]
    del before["optim"]["milestones"]
    del before["train"]["drop_last"], before["train"]["keep_epochs"]
    canonical = json.dumps(before, sort_keys=True, separators=(",", ":"))
    assert recipe_fingerprint(tiny) == hashlib.sha256(canonical.encode()).hexdigest()
    for change in (
        "teacher.draw=one",
        "teacher.mirror=true",
        "teacher.weights=[1, 2]",
        "student.zero_gamma=false",
        "student.network=resnet8",
        "loss.kd.standardise=true",
        "train.drop_last=false",
    ):
        assert recipe_fingerprint(load("tiny", [change]).recipe) != recipe_fingerprint(tiny)


def test_later_keys_of_terms_leave_old_fingerprints() -> None:
    hint = load("tiny", ["loss.fitnet.weight=1"]).recipe
    before = hint.model_dump(mode="json", exclude={"about"}, exclude_none=True)
    assert before["loss"]["fitnet"].pop("layout") == "pointwise"
    for name, keys in LATER_KEYS.items():
        table = reduce(lambda outer, part: outer.get(part, {}), name.split("."), before)
        for key in keys:
            table.pop(key, None)
    canonical = json.dumps(before, sort_keys=True, separators=(",", ":"))
    assert recipe_fingerprint(hint) == hashlib.sha256(canonical.encode()).hexdigest()
    changed = load("tiny", ["loss.fitnet.weight=1", "loss.fitnet.layout=released"]).recipe
    assert recipe_fingerprint(changed) != recipe_fingerprint(hint)


def test_with_single_teacher_selects_one_teacher() -> None:
    several = ["teacher.runs=['a', 'b']", "teacher.draw=one", "teacher.weights=[1, 2]"]
    mirrored = "teacher.mirror=true"
    alone = recipe_variants.with_single_teacher(load("kd", [*several, mirrored]).recipe, 1)
    assert alone == load("kd", ["teacher.runs=['b']", mirrored]).recipe


def test_differences_name_the_keys() -> None:
    overrides = ["optim.lr=0.5", "augment.flip=false", "optim.clip=1", "about.claim=x"]
    assert compare_recipes.differences(load("tiny").recipe, load("tiny", overrides).recipe) == [
        "augment.flip: {prob = 0.5, alternate = false} -> absent",
        "optim.lr: 0.05 -> 0.5",
        "optim.clip: absent -> 1.0",
    ]


def test_difference_of_an_absent_table_has_all_values() -> None:
    kd, alone = load("kd").recipe, load("kd", ["loss.kd=false"]).recipe
    (line,) = compare_recipes.differences(alone, kd)
    key, values = line.split(": absent -> ")
    assert key == "loss.kd"
    assert tomllib.loads(f"kd = {values}")["kd"] == kd.loss.kd.model_dump()
    longer = load("kd", ["loss.kd.when.end=0.5"]).recipe
    assert compare_recipes.differences(kd, longer) == ["loss.kd.when.end: 1.0 -> 0.5"]


def test_needs_are_those_of_the_terms() -> None:
    assert recipes.required_inputs(load("kd").recipe) == {"labels", "teacher"}
    assert recipes.required_inputs(load("kd", ["loss.hard=false"]).recipe) == {"teacher"}
    assert not recipes.has_teacher(load("student_alone").recipe)
    assert recipes.has_teacher(load("kd").recipe)
    assert recipes.required_inputs(load("student_alone").recipe) == {"labels"}
    assert list(load("kd").recipe.loss.terms()) == ["hard", "kd"]


def test_with_teacher_and_with_source_replace_values() -> None:
    kd = load("kd").recipe
    distilled = recipe_variants.with_source(
        recipe_variants.with_teacher(kd, ["runs/a", "runs/b"]), "synthetic"
    )
    assert distilled.teacher is not None
    assert distilled.teacher.runs == ("runs/a", "runs/b")
    assert distilled.data.source == "synthetic"
    assert kd.teacher is None
    overrides = ["teacher.runs=['runs/a','runs/b']", "data.source=synthetic"]
    assert distilled == load("kd", overrides).recipe


def test_student_spec_matches_design_arguments() -> None:
    student = load("kd").recipe.student
    assert student is not None
    assert Design.of(**student.spec(), classes=100).classes == 100


def test_a_broken_file_among_the_shipped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_files, "ROOT", tmp_path.resolve())
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/a.toml").write_text("[about]\nclam = 'x'\nminutes = 3")
    (tmp_path / "recipes/b.toml").write_text("[")
    with pytest.raises(RecipeError) as error:
        recipes.shipped()
    assert sorted(fault.split(";")[0] for fault in error.value.faults) == [
        'about.clam = "x" (recipes/a.toml) is not a key',
        "about.minutes = 3 (recipes/a.toml) is a whole number",
        "recipes/b.toml is not TOML: Invalid initial character for a key part (at line 1, the end)",
    ]


def test_recipe_error_can_be_pickled() -> None:
    error = RecipeError("kd", ["a", "b"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("tiny").recipe.optim.lr = 1.0


@pytest.mark.long
def test_reading_recipes_needs_no_torch() -> None:
    code = (
        "import sys; from distill.recipe.count_parameters import count_networks\n"
        "from distill.recipe.recipes import load, shipped\n"
        "load('kd_cutmix+quickstart'); shipped(); count_networks('kd')\n"
        "print(*sorted({'torch', 'numpy', 'timm', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_ingredient_alone_is_refused_with_advice() -> None:
    with pytest.raises(RecipeError, match=r"mixup is an ingredient, .* type kd\+mixup"):
        load("mixup")


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("kd_cutmix", "teacher_wrn"),
        ("kd_cutmix+quickstart", "teacher_wrn+quickstart"),
        ("tiny+ema", "tiny+ema --set loss.kd=false --set loss.hard.weight=1"),
        ("crd_cifar100+published_at", "crd_cifar100_teacher"),
        ("kd+crd_protocol+published_crd_kd", "teacher_wrn+crd_protocol"),
        ("mine", "teacher_wrn"),
        ("kd_cutmix+teacher_wrn", "teacher_wrn"),
        ("kd+teacher_wrn+ema", "teacher_wrn+ema"),
    ],
)
def test_teacher_for_returns_the_teacher_command(name: str, teacher: str) -> None:
    assert find_teacher_recipe.teacher_for(name) == teacher


@pytest.mark.parametrize("name", ["a\nb.toml", "a\nb/c"])
def test_name_with_line_feed_is_one_line(name: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load(name)
    assert r"a\nb" in str(refused.value) and len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("spec", "name"), [("kd", "kd"), ("dkd", "dkd"), ("multi_temperature", "multi_temperature")]
)
def test_standardising_changes_the_fingerprint_only_if_on(spec: str, name: str) -> None:
    """Older recipes had no such key."""
    plain = recipe_fingerprint(load(spec).recipe)
    key = f"loss.{name}.standardise"
    assert recipe_fingerprint(load(spec, [f"{key}=false"]).recipe) == plain
    assert recipe_fingerprint(load(spec, [f"{key}=true"]).recipe) != plain


def test_changed_values_leave_out_defaults() -> None:
    recipe = recipes.load("kd", ("optim.lr=0.3", "ema.half_life=2.0")).recipe
    changed = compare_recipes.changed_values(recipe)
    assert changed["optim.lr"] == "0.3" and changed["ema.decay"] == "absent"
    assert "optim.momentum" not in changed and not [key for key in changed if "about" in key]
    known = compare_recipes.values(recipe)
    for key, text in changed.items():
        assert key in known or text == "absent" or text.startswith("{"), key
    assert changed["augment.flip"] == "{prob = 0.5, alternate = false}"


@pytest.mark.long
def test_changed_values_and_defaults_are_the_whole_recipe() -> None:
    for name, path, _ in recipes.shipped():
        if path.parent.name == "ingredients":
            continue
        recipe = recipes.load(name).recipe
        changed = {k: v for k, v in compare_recipes.changed_values(recipe).items() if v != "absent"}
        tables: dict[str, Any] = {}
        for key, text in changed.items():
            *parents, last = key.split(".")
            table = tables
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = tomllib.loads(f"x = {text}")["x"]
        again = Recipe.model_validate(tables)
        assert compare_recipes.differences(again, recipe) == [], name


def test_set_replaces_the_network_without_a_note() -> None:
    noted = recipes.load("kd_cutmix+two_cores").replaced
    assert noted["student"].startswith("two_cores replaces the network of kd_cutmix: ")
    typed = ["student.network=resnet20"]
    assert recipes.load("kd_cutmix+two_cores", typed).replaced == {}


def test_malformed_override_hides_no_other_fault() -> None:
    with pytest.raises(RecipeError) as caught:
        load("kd", ["nothing", "train.epochs=3", "optim.warmup_epochs=3", "optim.momentum=2"])
    faults = "\n".join(caught.value.faults)
    assert "--set nothing has no value" in faults
    assert "optim.momentum = 2 (--set) is out of range" in faults


def test_run_recipe_comments_on_unread_teacher_keys() -> None:
    recipe = recipes.load("kd_cutmix").recipe
    assert recipes.of_run(recipe) == recipes.dumps(recipe)
    with_run = recipe_variants.with_teacher(recipe, ["runs/resnet110"])
    text = recipes.of_run(with_run)
    assert "[teacher]  # only draw, mirror, runs, weights are read: the networks are" in text
    assert recipes.loads(text, "again") == with_run


def test_further_faults_are_counted() -> None:
    lines = str(RecipeError("a", [f"fault {n}" for n in range(1000)])).splitlines()
    assert lines[0] == "1000 faults in a" and len(lines) == 102
    assert lines[-2:] == ["  fault 99", "  and 900 more"]
