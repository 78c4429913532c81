"""Conflicting keys: one line names both keys, the files that set them, and a remedy."""

import re
from math import fsum
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from timm.optim import get_optimizer_info

from distill.recipe.compare_recipes import differences_with_origins
from distill.recipe.constraints import (
    ROUNDING,
    RULES,
    WITHOUT_BETAS,
    WITHOUT_EPS,
    suggested_milestones,
)
from distill.recipe.loss_schema import Losses, taps
from distill.recipe.recipes import RecipeError, check_report, dumps, load, loads
from distill.recipe.schema import OptimizerName

DKD = "loss.dkd.weight=1"
AT = "loss.at.weight=1"


def faults(spec: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(spec, overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_one_label_loss_with_mixing_names_both_files() -> None:
    assert faults("kd_cutmix", DKD) == [
        "loss.dkd (--set) reads one class per sample, but mix.cutmix "
        "(recipes/ingredients/cutmix.toml) makes several of them; "
        "type --set mix.cutmix=false or --set loss.dkd=false"
    ]


@pytest.mark.parametrize("way", ["mixup", "cutmix", "ricap"])
def test_sample_index_loss_refuses_every_mixing(way: str) -> None:
    (line,) = faults("kd", "loss.crd.weight=1", f"mix.{way}.prob=0.5")
    assert line == (
        f"loss.crd (--set) knows each image by its index, but mix.{way} (--set) mixes several "
        f"images into one; type --set mix.{way}=false or --set loss.crd=false"
    )


def test_cache_with_a_loss_on_maps_is_refused() -> None:
    assert faults("kd", AT, "cache.views=3") == [
        "loss.at (--set) reads the teacher's maps, but cache (--set) caches only its logits; "
        "type --set cache=false or --set loss.at=false"
    ]


@pytest.mark.parametrize(
    ("setting", "why", "remedy"),
    [
        ("teacher.mirror=true", "means two forwards, whose maps are not averaged", "mirror=false"),
        ("teacher.draw=one", "means several teachers", "draw=all"),
        ("teacher.weights=[1, 2]", "means several teachers", "weights=[]"),
    ],
)
def test_loss_on_maps_needs_one_teacher(setting: str, why: str, remedy: str) -> None:
    key = setting.split("=")[0]
    assert faults("kd", AT, setting) == [
        f"loss.at (--set) reads the maps of one teacher, but {key} (--set) {why}; "
        f"type --set teacher.{remedy} or --set loss.at=false"
    ]
    load("kd", [AT, f"teacher.{remedy}"])


def test_faulty_keys_of_several_teachers_are_one_message() -> None:
    assert faults("kd", "teacher.weights=[1, 0]", "teacher.draw=some", "teacher.mirror=1") == [
        'teacher.draw = "some" (--set) is unknown; allowed: "all" or "one"',
        "teacher.mirror = 1 (--set) is a whole number; allowed: true or false",
        "teacher.weights = [1, 0] (--set) is out of range; "
        "allowed: a list, each a number (above 0, at most 1_000_000)",
    ]


def test_unknown_map_is_refused_with_allowed_ones() -> None:
    assert faults("kd", AT, 'loss.at.student_taps=["stages.0", "stages.1", "stages.3"]') == [
        'loss.at.student_taps = "stages.3" (--set) is not a feature map of the student; '
        "allowed: stem, stages.0, stages.1, stages.2, maps, features; did you mean stages.2?"
    ]
    unknown = 'loss.at.student_taps=["stages.7", "stages.8", "stages.9"]'
    lines = faults("kd", AT, unknown)
    assert ["allowed: stem" in line for line in lines] == [True, False, False]
    (line,) = faults("kd", "loss.simkd.weight=1")
    assert line.endswith(
        "the student has no projector: type --set student.projector_width=, the teacher's width"
    )


def test_numbers_of_taps_must_match() -> None:
    assert faults("kd", AT, 'loss.at.teacher_taps=["stages.0"]') == [
        'loss.at.student_taps = ["stages.0", "stages.1", "stages.2"] (default) has 3 maps, and '
        "loss.at.teacher_taps has 1; allowed: the same number in both"
    ]


def test_soft_mix_needs_images_mixed_from_two() -> None:
    assert faults("kd", "loss.soft_mix.weight=1") == [
        "loss.soft_mix mixes the teacher's logits as the images are mixed, and none are; "
        "type --set mix.cutmix.prob=0.5"
    ]
    assert faults("kd", "loss.soft_mix.weight=1", "mix.ricap.prob=0.5") == [
        "loss.soft_mix (--set) mixes the logits of two images, but mix.ricap (--set) mixes "
        "four; type --set mix.ricap=false"
    ]


def test_all_weights_zero_is_refused() -> None:
    assert faults("kd", "loss.hard.weight=0", "loss.kd.weight=0") == [
        "loss.hard.weight = 0.0 (--set) leaves no term with a weight above 0, so nothing would "
        "be learnt; "
        "type --set loss.hard.weight=1"
    ]


def test_some_term_is_active_at_every_moment() -> None:
    alone = ["loss.hard=false", "loss.kd.when.begin=0.25", "loss.fitnet.weight=1"]
    way_out = "let one begin by then, or type --set loss.hard.weight=1"
    assert faults("kd", *alone, "loss.fitnet.when.end=0.125") == [
        f"loss has no term with a weight above 0 at 0.125 of the training; {way_out}"
    ]
    load("kd", [*alone, "loss.fitnet.when.end=0.25"])
    assert faults("kd", *alone[:2]) == [
        f"loss has no term with a weight above 0 at 0 of the training; {way_out}"
    ]
    load("kd", [*alone[1:2], "loss.hard.weight=1"])


def test_term_must_end_after_its_warmup() -> None:
    assert faults("kd", "loss.kd.when.warmup=0.5", "loss.kd.when.end=0.5") == [
        "loss.kd.when.begin = 0.0 (default) plus warmup = 0.5 is not before end = 0.5"
    ]


def test_mixing_probabilities_add_up_to_at_most_1() -> None:
    (line,) = faults("kd", "mix.mixup.prob=0.5", "mix.cutmix.prob=0.4", "mix.ricap.prob=0.2")
    assert line == (
        "mix.mixup.prob = 0.5 (--set) and mix.cutmix.prob = 0.4 and mix.ricap.prob = 0.2 add up "
        "to more than 1; each sample is mixed in one way at most; type --set mix.mixup.prob=0.4"
    )
    load("kd", ["mix.mixup.prob=0.4", "mix.cutmix.prob=0.4", "mix.ricap.prob=0.2"])
    adding_up_to_one = ["mix.mixup.prob=0.33", "mix.cutmix.prob=0.56", "mix.ricap.prob=0.11"]
    assert 0.33 + 0.56 + 0.11 > 1  # in floats, added one by one
    load("kd", adding_up_to_one)


RESNET = ["teacher.network=resnet", "teacher.stages=2", "teacher.blocks=1", "teacher.width=4"]


def test_keys_of_another_network_are_refused_together() -> None:
    assert faults("fast_teacher", "teacher.depth=16", "teacher.dropout=0.1") == [
        f"teacher.{key} (--set) is a key of wrn, but teacher.network (recipes/fast_teacher.toml) "
        "is resnet; remove it, or type --set teacher.network=wrn"
        for key in ("depth = 16", "dropout = 0.1")
    ]
    load("fast_teacher", ["teacher.depth=16", "teacher.dropout=0.1", "teacher.network=wrn"])
    lines = faults("kd", "teacher.channels=[4,8]", "teacher.kernel=5")
    assert lines == [
        f"teacher.{key} (--set) is a key of resnet, but teacher.network (default) is wrn; "
        "remove it, or type --set teacher.network=resnet"
        for key in ("channels = [4, 8]", "kernel = 5")
    ]
    (line,) = faults("kd", "teacher.network=timm/{0}", "teacher.pool=4")
    assert "but teacher.network (--set) is timm; remove it" in line
    load("kd", ["teacher.network=timm/resnet18", "teacher.depth=16"])  # as older runs have it


def test_a_residual_teacher_is_whole_and_legal() -> None:
    lines = faults("kd", "teacher.network=resnet")
    assert [line.split(";")[0] for line in lines] == [
        f'teacher.{key} is missing, and network = "resnet" needs it'
        for key in ("stages", "blocks", "width")
    ]
    load("kd", ["teacher.network=resnet", *(each for line in lines for each in typed(line))])
    assert faults("kd", *RESNET, "teacher.kernel=2", "teacher.pool=17") == [
        "teacher.kernel = 2 (--set) must be odd: padding (k-1)//2 centres odd kernels only",
        'teacher.pool = 17 (--set) is larger than the last map, 16x16; "global" fits any',
    ]
    (line,) = faults("kd", *RESNET, "teacher.stem_kernel=0")
    assert line.startswith("teacher.stem_kernel = 0 (--set) is out of range")


def test_a_residual_teacher_has_neither_budget_nor_projector() -> None:
    load("kd", [*RESNET, "teacher.width=1024"])
    for key in ("max_params", "projector_width", "projector_factor"):
        (line,) = faults("kd", *RESNET, f"teacher.{key}=64")
        assert line.startswith(f"teacher.{key} = 64 (--set) is not a key")


def typed(message: str) -> list[str]:
    """The values of every --set that a message suggests."""
    return re.findall(r"--set (\S+)", message)


def test_function_matching_with_ricap_suggests_valid_shares() -> None:
    (line,) = faults("function_matching+ricap")
    assert line == (
        "mix.mixup.prob = 0.5 (recipes/ingredients/mixup.toml) and mix.cutmix.prob = 0.5 and "
        "mix.ricap.prob = 1.0 add up to more than 1; each sample is mixed in one way at most; "
        "type --set mix.mixup.prob=0.25 --set mix.cutmix.prob=0.25 --set mix.ricap.prob=0.5"
    )
    mix = load("function_matching+ricap", typed(line)).recipe.mix
    assert [way.prob for way in mix.ways().values()] == [0.25, 0.25, 0.5]


@pytest.mark.long
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
@example([0.5, 0.5 + 2**-51, 0.0])  # what is left is 0.5 to sixteen digits
def test_suggested_shares_are_valid_as_typed(shares: list[float]) -> None:
    ways = zip(("mixup", "cutmix", "ricap"), shares, strict=True)
    overrides = [f"mix.{way}.prob={share}" for way, share in ways]
    if fsum(shares) <= 1 + ROUNDING:
        load("kd", overrides)
        return
    (line,) = faults("kd", *overrides)
    load("kd", [*overrides, *typed(line)])


def test_ranges_must_be_ascending() -> None:
    assert faults("kd", "augment.erase.area=[0.3, 0.1]") == [
        "augment.erase.area = [0.3, 0.1] (--set) is out of order; allowed: the smaller first"
    ]


def test_optimizer_refuses_invalid_arguments() -> None:
    assert faults("kd", "optim.momentum=0") == [
        "optim.momentum = 0.0 (--set) cannot be used with sgd, which is Nesterov's; "
        "type --set optim.name=momentum"
    ]
    load("kd", ["optim.momentum=0", "optim.name=momentum"])
    assert faults("kd", "optim.name=adan", "optim.betas=[0.9, 0.99]") == [
        "optim.betas = [0.9, 0.99] (--set) has two values, but adan has three of its own; "
        "remove it, or use another optimizer"
    ]


def test_ignored_optimizer_arguments_are_refused() -> None:
    adamw = ("optim.name=adamw", "optim.betas=[0.9, 0.99]", "optim.eps=1e-6")
    load("kd", adamw)
    assert faults("kd", *adamw, "optim.name=sgd") == [
        f"optim.{given} (--set) has no effect if optim.name (--set) is sgd; remove it"
        for given in ("betas = [0.9, 0.99]", "eps = 1e-06")
    ]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_optimizer_arguments_match_timm(name: str) -> None:
    known = get_optimizer_info(name)
    assert known.has_betas == (name not in WITHOUT_BETAS)
    assert known.has_eps == (name not in WITHOUT_EPS)


def test_one_cycle_refuses_warmup() -> None:
    one_cycle = "optim.schedule=one_cycle"
    assert faults("kd", one_cycle) == [
        "optim.warmup_epochs = 5.0 (recipes/kd.toml) has no effect if optim.schedule (--set) "
        "is one_cycle, which has its own warmup; type --set optim.warmup_epochs=0"
    ]
    load("kd", [one_cycle, "optim.warmup_epochs=0"])


MILESTONES = "optim.schedule=milestones"


def test_milestones_are_needed_ascending_and_in_training() -> None:
    assert faults("kd", MILESTONES) == [
        "optim.milestones is missing, and optim.schedule is milestones; "
        "type --set optim.milestones=[187,225,262]"
    ]
    for shown in ("[180, 150]", "[150, 150]"):
        assert faults("kd", MILESTONES, f"optim.milestones={shown}") == [
            f"optim.milestones = {shown} (--set) is not ascending; each epoch must be larger than "
            "the one before"
        ]
    late = "optim.milestones=[150, 240]"
    assert faults("kd", MILESTONES, late, "train.epochs=240") == [
        "optim.milestones = [150, 240] (--set) has 240, and train.epochs (--set) is 240; after its "
        "last epoch the rate has no effect; type --set optim.milestones=[150,180,210]"
    ]
    assert faults("kd", MILESTONES, late, "train.epochs=1", "optim.warmup_epochs=0") == [
        "optim.milestones = [150, 240] (--set) has 150, and train.epochs (--set) is 1; after its "
        "last epoch the rate has no effect; "
        "type --set optim.schedule=constant --set optim.milestones=[]"
    ]
    load("kd", [MILESTONES, "optim.milestones=[150, 180, 299]"])


def test_milestones_have_an_effect_or_are_refused() -> None:
    assert faults("kd", "optim.milestones=[150]") == [
        "optim.milestones = [150] (--set) has no effect if optim.schedule (recipes/kd.toml) is "
        "cosine; type --set optim.milestones=[] or --set optim.schedule=milestones"
    ]
    load("kd", ["optim.milestones=[]"])


def test_milestones_need_a_number_of_epochs() -> None:
    assert faults("kd", MILESTONES, "optim.milestones=[150]", "train.minutes=10") == [
        'optim.schedule = "milestones" (--set) counts epochs, and train.minutes (--set) sets a '
        "time; type --set train.epochs=240, or --set optim.schedule=cosine --set "
        "optim.milestones=[]"
    ]


@pytest.mark.long
@given(st.integers(2, 400))
def test_suggested_milestones_are_accepted(epochs: int) -> None:
    """The shares 150, 180 and 210 of 240, without repetitions."""
    chosen = suggested_milestones(epochs)
    load("tiny", [MILESTONES, f"optim.milestones={chosen}", f"train.epochs={epochs}"])
    assert 1 <= len(chosen) <= 3


def test_min_lr_must_be_below_lr_and_used() -> None:
    for floor in ("0.2", "0.5"):
        assert faults("kd", f"optim.min_lr={floor}") == [
            f"optim.min_lr = {floor} (--set) is not below optim.lr (recipes/kd.toml), which is "
            "0.2; type --set optim.min_lr=0.002, or 0 for none"
        ]
    constant = "optim.schedule=constant"
    assert faults("kd", "optim.min_lr=0.3", constant) == [
        "optim.min_lr = 0.3 (--set) has no effect if optim.schedule (--set) is constant; "
        "type --set optim.min_lr=0"
    ]
    load("kd", ["optim.min_lr=0", constant])
    for schedule in ("cosine", "linear", "step"):
        load("kd", ["optim.min_lr=0.199", f"optim.schedule={schedule}"])
    load("kd", ["optim.min_lr=0.199", "optim.schedule=one_cycle", "optim.warmup_epochs=0"])


@pytest.mark.parametrize("term", ["fitnet.student_tap", "vid.student_taps", "at.teacher_taps"])
def test_terms_on_maps_refuse_pooled_features(term: str) -> None:
    name, key = term.split(".")
    tap = '"features"' if key.endswith("tap") else '["features", "maps", "maps"]'
    (line,) = faults("kd", f"loss.{name}.weight=1", f"loss.{term}={tap}")
    assert line == (
        f'loss.{term} = "features" (--set) is pooled, and this term reads positions of a map; '
        "allowed: one of the maps"
    )


def test_minutes_and_epochs_replace_each_other() -> None:
    timed = load("kd", ["train.minutes=10"]).recipe.train
    assert (timed.minutes, timed.epochs) == (10.0, None)
    assert faults("kd", "train.minutes=10", "train.epochs=9") == [
        "--set train.epochs and --set train.minutes exclude each other; give one of them"
    ]
    with pytest.raises(
        RecipeError, match=r"train.minutes = 1.0 \(a.toml\) and train.epochs = 9 exc"
    ):
        loads("[loss.hard]\n[train]\nminutes = 1.0\nepochs = 9", "a.toml")
    load("kd", ["train.minutes=1", "optim.warmup_epochs=500"])  # known when the pace is


def test_decay_and_half_life_replace_each_other() -> None:
    ema = load("kd+ema", ["ema.half_life=1"]).recipe.ema
    assert ema is not None and (ema.half_life, ema.decay) == (1.0, None)
    fresh = load("kd", ["ema.half_life=2"]).recipe.ema
    assert fresh is not None and (fresh.half_life, fresh.decay) == (2.0, None)
    plain = load("kd", ["ema.warmup=false"]).recipe.ema
    assert plain is not None and (plain.half_life, plain.decay) == (None, 0.999)
    assert faults("kd", "ema.half_life=1", "ema.decay=0.9") == [
        "--set ema.decay and --set ema.half_life exclude each other; give one of them"
    ]
    with pytest.raises(
        RecipeError, match=r"ema.half_life = 1.0 \(a.toml\) and ema.decay = 0.9 exc"
    ):
        loads("[loss.hard]\n[train]\nepochs = 1\n[ema]\nhalf_life = 1\ndecay = 0.9", "a.toml")


def test_half_life_survives_writing_and_reading() -> None:
    recipe = load("kd+ema", ["ema.half_life=1"]).recipe
    assert loads(dumps(recipe), "again") == recipe


def test_all_conflicts_at_once() -> None:
    lines = faults("kd_cutmix", DKD, AT, "cache.views=3", 'loss.at.student_taps=["head"]')
    assert len(lines) == 4


def test_taps_returns_keys_and_names() -> None:
    losses = Losses.model_validate({"at": {}, "fitnet": {"student_tap": "stem"}, "kd": {}})
    assert [list(taps(term, "student")) for term in losses.terms().values()] == [
        [],
        [("student_tap", "stem")],
        [("student_taps", f"stages.{i}") for i in range(3)],
    ]


def test_every_rule_has_a_docstring_and_name() -> None:
    assert len({rule.__name__ for rule in RULES}) == len(RULES) == 28
    assert all(rule.__doc__ for rule in RULES)


def test_an_ingredient_is_checked_key_by_key(tmp_path) -> None:
    assert check_report("recipes/ingredients/ema.toml") == (
        "recipes/ingredients/ema.toml: no faults; "
        "an ingredient, to be composed with a recipe: kd+ema"
    )
    with pytest.raises(RecipeError, match=r"ema.decy = 0.5 \(--set\) is not a key"):
        check_report("ema", ["ema.decy=0.5"])


def test_a_file_is_checked_with_all_its_faults(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "kd"\n[optim]\nlrr = 1\n[loss.dkd]\n[mix.mixup]\nprob = 2.0\n')
    with pytest.raises(RecipeError, match="2 faults") as error:
        check_report(str(file))
    assert "did you mean optim.lr?" in str(error.value)
    file.write_text('base = "kd"\n')
    assert check_report(str(file)) == f"{file}: no faults"


def test_differences_name_values_and_origins() -> None:
    students = (load("tiny", [f"teacher.depth={n}", 'teacher.runs=["x"]']) for n in (10, 16))
    assert differences_with_origins(*students) == []
    assert differences_with_origins(load("kd"), load("kd", ["optim.lr=0.3", "ema.decay=0.5"])) == [
        "optim.lr: 0.2 (recipes/kd.toml) -> 0.3 (--set)",
        'ema: absent -> {decay = 0.5, warmup = true, norm_statistics = "averaged"} (--set)',
    ]


POOLED = (
    "student.stages=3", "student.blocks=1", "student.downsample=pool", "student.stem_kernel=2",
)  # fmt: skip


def test_a_resolution_begins_at_0_and_rises() -> None:
    shown = "train.resolution = [[0.2, 24], [0.1, 20]] (--set)"
    assert faults("kd", "train.resolution=[[0.2, 24], [0.1, 20]]") == [
        f"{shown} has no image size for the beginning; the first fraction must be 0: [0.0, 24]",
        f"{shown} has fraction 0.1 after 0.2; fractions must increase",
        f"{shown} has size 20 after 24; sizes must increase",
    ]


def test_a_resolution_above_the_images_is_refused() -> None:
    (line,) = faults("kd", "train.resolution=[[0, 32], [0.5, 64]]")
    assert line == (
        "train.resolution = [[0.0, 32], [0.5, 64]] (--set) has size 64, and the images have "
        "data.size (default) = 32; type --set data.size=64"
    )
    load("kd", ["train.resolution=[[0, 32], [0.5, 64]]", "data.size=64"])


@pytest.mark.parametrize("size", ["15", "129", "true", "[32, 32]"])
def test_a_size_of_other_values_is_refused(size: str) -> None:
    (line,) = faults("kd", f"data.size={size}")
    assert line.endswith("allowed: a whole number (at least 16, at most 128)")


def test_a_design_must_fit_the_image_size() -> None:
    spec = ("student.downsample=pool", "student.stages=5", "student.blocks=1")
    (line,) = faults("kd", *spec, "student.stage_strides=[2, 2, 2, 2, 2]", "data.size=16")
    assert "pool a 16x16 map to nothing" in line


@pytest.mark.parametrize("value", ["[]", "20", "[[0.0, 33]]", "[[0, 6]]", "[[0, 21]]", "[[0]]"])
def test_a_resolution_of_other_values_is_refused(value: str) -> None:
    (line,) = faults("kd", f"train.resolution={value}")
    assert line.endswith(
        "allowed: a list of at least 1, each [a number (at least 0, below 1), a whole number "
        "(at least 8, at most 128, a multiple of 2)]"
    )


@pytest.mark.parametrize(
    ("options", "refused", "smallest"),
    [
        # A kernel of 2 without padding, then three pools: 9 - 1 = 8 is the least that is left.
        (POOLED, "8", 10),
        # 32 -> 16 -> 8 -> pool of 4 gives 2x2; 30 -> 15 -> 8; 28 -> 14 -> 7, which gives 1x1.
        (("student.stages=3", "student.blocks=1", "student.pool=4"), "8 and 28", 30),
    ],
)
def test_side_too_small_for_student_is_refused(options, refused, smallest) -> None:
    (line,) = faults("kd", *options, "train.resolution=[[0, 8], [0.5, 28], [0.7, 32]]")
    assert line == (
        "train.resolution = [[0.0, 8], [0.5, 28], [0.7, 32]] (--set) has size "
        f"{refused}, too small for this student's maps or its pool; the smallest size that "
        f"fits is {smallest}"
    )
    load("kd", [*options, f"train.resolution=[[0, {smallest}]]"])
