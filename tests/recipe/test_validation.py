"""Every fault of a recipe at once: key, value, who set it, what is allowed, the nearest name."""

import pytest

from distill.recipe.recipes import RecipeError, load, loads
from distill.recipe.validation import allowed_text, check, keys

EPOCHS = {"epochs": 3}
HARD = {"hard": {}}
NETWORKS = (
    'allowed: "wrn", "resnet", "timm/NAME", "FILE.py:NAME" or a name such as resnet20, resnet8x4, '
    "wrn-16-2, vgg8, mobilenetv2"
)
STUDENT = ["student.stages=2", "student.blocks=1", "student.width=4"]


def faults(*overrides: str) -> list[str]:
    """The faults of `tiny` under overrides, each as one line."""
    with pytest.raises(RecipeError) as error:
        load("tiny", overrides)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{len(lines) - 1} fault{'s' * (len(lines) > 2)} in tiny"
    return [line.strip() for line in lines[1:]]


def test_five_faults_at_once_are_five_lines() -> None:
    text = """
        [optim]
        lrr = 0.1
        name = "sdg"
        [data]
        holdout = 1.5
        [train]
        epochs = "ten"
        [loss.hard]
        [mix.mixup]
        prob = 0.8
        [mix.cutmix]
        prob = 0.3
    """
    with pytest.raises(RecipeError) as error:
        loads(text, "kd.toml")
    first, *lines = str(error.value).splitlines()
    assert first == "5 faults in kd.toml"
    assert sorted(line.strip() for line in lines) == [
        "data.holdout = 1.5 (kd.toml) is out of range; allowed: a number (at least 0, below 1)",
        "mix.mixup.prob = 0.8 (kd.toml) and mix.cutmix.prob = 0.3 add up to more than 1; "
        "each sample is mixed in one way at most; type --set mix.mixup.prob=0.7",
        "optim.lrr = 0.1 (kd.toml) is not a key; did you mean optim.lr?",
        f'optim.name = "sdg" (kd.toml) is unknown; allowed: {allowed_text("optim.name")}; '
        'did you mean "sgd"?',
        'train.epochs = "ten" (kd.toml) is text; allowed: a whole number (at least 1, '
        "at most 1_000_000)",
    ]


def test_other_word_for_base_is_the_only_fault() -> None:
    with pytest.raises(RecipeError) as error:
        loads('extends = "kd_cutmix"\n[loss]\nkd = false\n', "mine.toml")
    assert list(error.value.faults) == [
        'extends = "kd_cutmix" (mine.toml) is not a key; to build on another recipe, write '
        'base = "kd", or compose = ["kd", "cutmix"] for several, at the top of the file'
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lrr=0.1", "optim.lrr = 0.1 (--set) is not a key; did you mean optim.lr?"),
        ("train.lr=0.1", "train.lr = 0.1 (--set) is not a key; did you mean optim.lr?"),
        (
            "loss.kd.tau=4",
            "loss.kd.tau = 4 (--set) is not a key; did you mean loss.kd.temperature?",
        ),
        ("loss.kd.T=4", "loss.kd.T = 4 (--set) is not a key; did you mean loss.kd.temperature?"),
        ("loss.kd.gamma=4", "loss.kd.gamma = 4 (--set) is not a key"),
        (
            "loss.kd.wieght=4",
            "loss.kd.wieght = 4 (--set) is not a key; did you mean loss.kd.weight?",
        ),
        ("optm.lr=0.1", "optm = {lr = 0.1} (--set) is not a key; did you mean optim?"),
        ("xyzzy=1", "xyzzy = 1 (--set) is not a key"),
        ("optim=3", "optim = 3 (--set) is a whole number; allowed: a table"),
        ("optim=false", "optim = false (--set) is a boolean; allowed: a table"),
        (
            "ema=true",
            "ema = true (--set) is a boolean; "
            "allowed: a table ({} for its defaults), or false for none",
        ),
        ("data.source=1", "data.source = 1 (--set) is a whole number; allowed: text"),
        ("data.source=1.5", "data.source = 1.5 (--set) is a number; allowed: text"),
        ("data.source=[]", "data.source = [] (--set) is a list; allowed: text"),
        ("data.source={}", "data.source = {} (--set) is a table; allowed: text"),
        ("data.source=2026-01-01", "data.source = 2026-01-01 (--set) is a date; allowed: text"),
        (
            "train.compile=1",
            'train.compile = 1 (--set) is a whole number; allowed: true or false or "auto"',
        ),
        (
            "teacher.runs=[1]",
            "teacher.runs = [1] (--set) is a list; allowed: a list, each text",
        ),
        (
            "student.blocks=[1,-1]",
            "student.blocks = [1, -1] (--set) is out of range; allowed: a whole number "
            "(at least 1, at most 1000) or a list, each a whole number (at least 0, at most 1000)",
        ),
        (
            "augment.erase={area=[0.1]}",
            "augment.erase.area = [0.1] (--set) is out of range; allowed: a list of 2, each a "
            "number (above 0, at most 1)",
        ),
        (
            "optim.milestones=[0]",
            "optim.milestones = [0] (--set) is out of range; allowed: a list of at most 1000, each "
            "a whole number (at least 1, at most 1_000_000)",
        ),
        (
            "student.pool=glob",
            'student.pool = "glob" (--set) is unknown; allowed: "global" or a whole number '
            '(at least 1, at most 1000); did you mean "global"?',
        ),
        (
            "train.precision=f16",
            'train.precision = "f16" (--set) is unknown; allowed: "auto", "bf16", "fp16" or "fp32"'
            '; did you mean "fp16"?',
        ),
        (
            "optim.lr=inf",
            "optim.lr = inf (--set) is out of range; allowed: a number (above 0, at most 1e+30)",
        ),
    ],
)
def test_a_faulty_key_is_one_line(override: str, line: str) -> None:
    assert faults(override) == [line]


@pytest.mark.parametrize(
    ("key", "refused", "taken"),
    [
        ("data.seed", "-1", "0"),
        ("data.holdout", "-0.1", "0"),
        ("data.holdout", "1", "0.5"),
        ("data.train_images", "0", "1"),
        ("augment.crop.padding", "0", "1"),
        ("augment.crop.padding", "17", "16"),
        ("augment.flip.prob", "1.1", "1"),
        ("mix.mixup.prob", "-0.1", "0"),
        ("mix.mixup.alpha", "0", "0.1"),
        ("mix.cutmix.alpha", "0", "0.1"),
        ("teacher.dropout", "1", "0.3"),
        ("student.head_dropout", "1", "0.3"),
        ("loss.hard.weight", "-1", "0"),
        ("loss.hard.label_smoothing", "1", "0.1"),
        ("loss.kd.weight", "-1", "0"),
        ("loss.kd.temperature", "0", "0.5"),
        ("optim.lr", "0", "1e-6"),
        ("optim.momentum", "1", "0.5"),
        ("optim.weight_decay", "-1e-4", "0"),
        ("optim.min_lr", "-1e-4", "0"),
        ("optim.warmup_epochs", "-1", "0.5"),
        ("optim.clip", "0", "1"),
        ("train.epochs", "0", "1"),
        ("train.batch_size", "0", "1"),
        ("train.seed", "-1", "1"),
        ("train.accumulate", "0", "2"),
        ("train.log_every", "0", "1"),
        ("train.save_every", "0", "1"),
        ("ema.decay", "0", "0.5"),
        ("ema.decay", "1", "0.999"),
    ],
)
def test_range_bounds_are_enforced(key: str, refused: str, taken: str) -> None:
    load("tiny", [f"{key}={taken}"])
    (line,) = faults(f"{key}={refused}")
    assert line.startswith(f"{key} = ")
    assert "(--set) is out of range; allowed: a " in line


def test_integer_is_accepted_for_float_not_vice_versa() -> None:
    assert isinstance(load("tiny", ["optim.lr=1"]).recipe.optim.lr, float)
    assert faults("train.epochs=2.0") == [
        "train.epochs = 2.0 (--set) is a number; allowed: a whole number (at least 1, at most "
        "1_000_000)"
    ]


def test_missing_key_is_named() -> None:
    with pytest.raises(RecipeError) as error:
        loads("[loss.hard]\n[student]\nblocks = 1", "a.toml")
    assert sorted(error.value.faults) == [
        'student.stages is missing, and network = "resnet" needs it; type --set student.stages=3',
        'student.width is missing, and network = "resnet" needs it; type --set student.width=64',
        "train.epochs is missing; allowed: a whole number (at least 1), or train.minutes instead",
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["mix.mixup.prob=0.7", "mix.cutmix.prob=0.5"],
            "mix.mixup.prob = 0.7 (--set) and mix.cutmix.prob = 0.5 add up to more than 1; "
            "each sample is mixed in one way at most; "
            "type --set mix.mixup.prob=0.5",
        ),
        (
            ["train.epochs=3", "optim.warmup_epochs=3"],
            "optim.warmup_epochs = 3.0 (--set) does not end before train.epochs = 3; "
            "type for example --set optim.warmup_epochs=0.3",
        ),
        (["loss.hard=false", "loss.kd=false"], "loss has no term; add [loss.hard] or [loss.kd]"),
        (
            ["loss.hard.weight=0", "loss.kd.weight=0"],
            "loss.hard.weight = 0.0 (--set) leaves no term with a weight above 0, so "
            "nothing would be learnt; type --set loss.hard.weight=1",
        ),
        (
            ["teacher.network=resnte"],
            f'teacher.network = "resnte" (--set) is unknown; {NETWORKS}; did you mean resnet? '
            "Networks of timm are typed as timm/NAME: timm/resnte, if timm has it",
        ),
        (
            ["teacher.network=timm/"],
            f'teacher.network = "timm/" (--set) is unknown; {NETWORKS}',
        ),
        (
            ["student.network=wrn"],
            'student.network = "wrn" (--set) needs a depth and a width; type wrn-16-2, for example',
        ),
        (
            ["student.network=wrn-17-2"],
            'student.network = "wrn-17-2" (--set) has depth 17, which wrn does not have; allowed: '
            "10, 16, 22, 28 …",
        ),
        (
            ["student.network=vgg8", "student.width=8"],
            "student.width = 8 (--set) is a key of resnet, but student.network (--set) is vgg8; "
            "remove it, or type --set student.network=resnet",
        ),
        (
            ["student.network=vgg13"],
            "student.max_params = 5000000 (default) is exceeded: vgg13 has 9,416,010 parameters, "
            "4,416,011 too many for fewer than 5,000,000; type --set student.max_params=9416011, "
            "or choose another network",
        ),
        (
            ["teacher.depth=27"],
            "teacher.depth = 27 (--set) is not a depth of wrn; allowed: 10, 16, 22, 28 …",
        ),
        (
            ["student.kernel=4"],
            "student.kernel = 4 (--set) must be odd: padding (k-1)//2 centres odd kernels only",
        ),
    ],
)
def test_a_rule_across_keys_is_one_line(overrides: list[str], line: str) -> None:
    assert faults(*overrides) == [line]


def test_the_shares_of_mixing_may_fill_the_batch() -> None:
    mix = load("tiny", ["mix.mixup.prob=0.1", "mix.cutmix.prob=0.9"]).recipe.mix
    assert mix.mixup is not None
    assert mix.cutmix is not None


def test_a_timm_network_has_no_depth_to_check() -> None:
    load("tiny", ["teacher.network=timm/resnet18", "teacher.depth=27"])


def test_design_faults_are_listed_under_their_keys() -> None:
    found = faults("student.kernel=[3,5,7]", "student.stem_kernel=4", "student.pool=99")
    assert len(found) == 3
    assert found[0].startswith("student.kernel = [3, 5, 7] (--set) has length 3")
    assert any(line.startswith("student.stem_kernel = 4 (--set) must be odd") for line in found)
    assert any(line.startswith("student.pool = 99 (--set) is larger than") for line in found)


def test_design_without_width_is_reported() -> None:
    with pytest.raises(RecipeError, match="student.width is missing, and network"):
        loads("[loss.hard]\n[train]\nepochs = 1\n[student]\nstages = 1\nblocks = 1", "a.toml")


def test_the_budget_is_strict() -> None:
    # tiny: stages 2, blocks 1, width 4. Stem 3·4·9+8; block 2(4·4·9+8); block 4·8·9+16 + 8·8·9+16
    # and its skip 4·8+16; linear 8·10+10.
    parameters = 116 + 304 + 304 + 592 + 48 + 90
    load("tiny", [f"student.max_params={parameters + 1}"])
    (line,) = faults(f"student.max_params={parameters}")
    assert line.startswith(f"student.max_params = {parameters} (--set) is exceeded: ResNet [1, 1]")
    assert "1 too many" in line


def test_unknown_key_does_not_hide_rule_faults() -> None:
    mixing = ["mix.cut=1", "mix.cutmix.prob=0.6", "mix.mixup.prob=0.6"]
    found = faults("optim.lrr=1", "optim.warmup_epochs=9", *mixing)
    assert [line.split(" = ")[0] for line in found] == [
        "mix.cut",
        "optim.lrr",
        "mix.mixup.prob",
        "optim.warmup_epochs",
    ]


def test_key_in_quotes_with_dot_is_named() -> None:
    with pytest.raises(RecipeError, match=r"optim.a.b = 1 \(a.toml\) is not a key"):
        loads('[loss.hard]\n[train]\nepochs = 1\n[optim]\n"a.b" = 1', "a.toml")


def test_unreadable_parts_report_no_missing_keys() -> None:
    assert check({}, whole=False)[1] == []
    recipe, found = check({"train": EPOCHS, "loss": HARD})
    assert recipe is not None
    assert found == []


def test_allowed_values_are_described_for_every_key() -> None:
    texts = {key: allowed_text(key) for key in keys()}
    assert len(texts) > 60
    assert all(text and "None" not in text and "null" not in text for text in texts.values())
    assert texts["loss.kd"] == "a table ({} for its defaults), or false for none"
    assert texts["student.width"] == "a whole number (at least 1, at most 65_536)"
    assert texts["augment.crop.padding"] == "a whole number (at least 1, at most 16)"
