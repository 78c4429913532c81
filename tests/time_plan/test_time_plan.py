"""Which recipes fit into some minutes, on a machine whose speed the test sets."""

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distill.data.image_set import Progress
from distill.errors import UserError
from distill.recipe import recipes
from distill.recipe.count_parameters import count_networks
from distill.recipe.recipes import About
from distill.time_plan import shipped_candidates, time_plan
from distill.time_plan.shipped_candidates import Candidate, PlannedTraining, training
from distill.time_plan.time_plan import BUDGET_S
from distill.training import flops, measure_speed
from distill.training.estimate_duration import TimeRange, time_range
from distill.training.measure_speed import Speed

RATE = 1e11  # operations a second of the machine below


@dataclass
class Machine:
    """Replaces `speed.measure`: every network computes at one rate, a measurement takes 6 s."""

    patch: pytest.MonkeyPatch
    rate: float = RATE
    takes_s: float = 6.0
    bf16: float = 1.0  # times the rate
    instructions: str | None = "AVX-512"  # of the CPU, for bf16
    teacher_share: float = 0.0
    now: float = 100.0
    timed: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patch.setattr(time, "monotonic", lambda: self.now)
        self.patch.setattr(measure_speed, "random_images", lambda n, n_classes, side: None)
        self.patch.setattr(measure_speed, "measure", self.measure)
        self.patch.setattr(measure_speed, "is_on_cpu", lambda: True)
        self.patch.setattr(time_plan, "bf16_instructions", lambda: self.instructions)

    def measure(self, recipe, role, teacher, images, until, rival_s=math.inf) -> Speed:  # type: ignore[no-untyped-def]
        self.now += self.takes_s
        self.timed.append((recipe, role, teacher))
        flop = 6 * flops.network_cost(recipe, role, 10).macs
        if teacher is not None:
            flop += flops.teacher_passes_per_image(recipe) * (
                2 * flops.network_cost(teacher, "teacher", 10).macs
            )
        factor = self.bf16 if recipe.train.precision == "bf16" else 1.0
        image_s = flop / (self.rate * factor)
        return Speed(time_range([image_s] * 4), self.teacher_share * image_s, image_s, image_s)

    def plan(
        self,
        minutes: float,
        rules: str | None = None,
        data: str | None = None,
        progress: Progress | None = None,
    ) -> Any:
        return time_plan.plan(minutes, rules, data, self.now, progress=progress)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def row(planned: Any, name: str) -> Any:
    (found,) = [row for row in planned["recipes"] if row["recipe"] == name]
    return found


def only(monkeypatch: pytest.MonkeyPatch, *chosen: Candidate) -> None:
    """The plan chooses from these alone."""
    monkeypatch.setattr(time_plan, "candidates", lambda: iter(chosen))


def alone(spec: str, *overrides: str, **about: Any) -> Candidate:
    return Candidate(About(**about), training("student", spec, overrides), None)


# What is proposed


@pytest.mark.long
def test_recipe_is_run_by_its_documented_command() -> None:
    found = {each.training.recipe_spec: each for each in shipped_candidates.candidates()}
    small = found["kd_cutmix+two_cores"]
    assert small.training.overrides == ("loss.kd.temperature=4",)
    assert (
        small.training.recipe.loss.kd is not None and small.training.recipe.loss.kd.temperature == 4
    )
    assert small.teacher is not None and small.teacher.recipe_spec == "teacher_wrn+two_cores"
    assert small.teacher.overrides == ("mix.cutmix=false", "train.epochs=10")
    assert small.about.measured_accuracy == 71.46


@pytest.mark.long
def test_teachers_and_controls_have_no_teacher() -> None:
    found = {each.training.recipe_spec: each for each in shipped_candidates.candidates()}
    assert found["teacher_wrn"].training.role == "teacher"
    assert found["teacher_wrn"].teacher is None
    assert found["student_alone"].teacher is None
    assert found["kd"].teacher is not None and found["kd"].teacher.recipe_spec == "teacher_wrn"


@pytest.mark.long
def test_teacher_is_trained_by_its_noted_command() -> None:
    found = {each.training.recipe_spec: each for each in shipped_candidates.candidates()}
    taught = found["fast_kd"].teacher
    assert taught == found["fast_teacher"].training
    assert taught.overrides == ("train.precision=bf16",)


@pytest.mark.long
def test_what_is_not_for_cifar10_is_not_proposed() -> None:
    found = {each.training.recipe_spec for each in shipped_candidates.candidates()}
    assert not found & {"tiny", "kd_cutmix+quickstart", "kd+cutmix", "kd+ricap", "crd_cifar100"}
    assert {"kd", "soft_mix", "nyu2022_2111"} <= found


@pytest.mark.long
def test_commands_can_be_typed_as_they_are() -> None:
    (small,) = [
        e
        for e in shipped_candidates.candidates()
        if e.training.recipe_spec == "kd_cutmix+two_cores"
    ]
    assert small.commands("my data") == [
        "python cli.py train-teacher --recipe teacher_wrn+two_cores --set mix.cutmix=false "
        "--set train.epochs=10 --data 'my data' --out runs/kd_cutmix+two_cores-teacher",
        "python cli.py distill --recipe kd_cutmix+two_cores --set loss.kd.temperature=4 "
        "--data 'my data' --teacher runs/kd_cutmix+two_cores-teacher",
    ]


# Time


def test_the_time_is_the_operations_at_the_rate(machine, monkeypatch) -> None:
    only(monkeypatch, alone("nyu2022_2111", "train.epochs=2"))
    planned = machine.plan(1000)
    macs = count_networks("nyu2022_2111")["macs"]
    trained = 2 * (40_000 // 128) * 128
    validated = 2 * 10_000 / 3  # a forward pass is a third of a step
    minutes = 6 * macs * (trained + validated) / RATE / 60
    found = row(planned, "nyu2022_2111")
    assert found["minutes"] == pytest.approx(minutes)
    assert found["low"] == pytest.approx(0.85 * minutes)
    assert found["high"] == pytest.approx(1.15 * minutes)
    assert found["training"]["flop"] == 6 * macs * trained
    assert found["is_timed"] and found["teacher"] is None


@pytest.mark.long
def test_a_teachers_time_is_added(machine) -> None:
    planned = machine.plan(1000)
    small = row(planned, "kd_cutmix+two_cores")
    assert small["teacher"]["network"] == "WRN-16-2"
    assert small["minutes"] == small["teacher"]["minutes"] + small["training"]["minutes"]
    # results/README.md: the teacher trains ten epochs of 117 batches of 128.
    trained, validated = 10 * 117 * 128, 10 * 2_000 / 3
    seconds = 6 * 101_106_944 * (trained + validated) / RATE
    assert small["teacher"]["minutes"] == pytest.approx(seconds / 60)


@pytest.mark.long
def test_cached_logits_save_the_teachers_part(monkeypatch) -> None:
    machine = Machine(monkeypatch, teacher_share=0.5)
    teacher = training("teacher", "teacher_wrn+two_cores", ())
    sets = ("train.epochs=12", "data.holdout=0.0")
    each = [
        Candidate(About(), training("student", "kd+two_cores+cached_targets", more), teacher)
        for more in (sets, (*sets, "cache.views=3"))
    ]
    times = []
    for one in each:
        only(monkeypatch, one)
        (found,) = machine.plan(1e6)["recipes"]
        times.append(found["training"]["minutes"])
    assert times[1] / times[0] == pytest.approx((3 + 9 * 0.5) / 12)


@pytest.mark.long
def test_a_budget_in_minutes_takes_just_that(machine, monkeypatch) -> None:
    only(monkeypatch, alone("student_alone", "train.minutes=30.0"))
    planned = machine.plan(31)
    found = row(planned, "student_alone")
    assert (found["minutes"], found["low"], found["high"], found["fits"]) == (30, 30, 30, True)
    assert found["training"]["flop"] is None
    assert machine.timed == []


def test_the_same_steps_are_timed_once(machine, monkeypatch) -> None:
    only(
        monkeypatch,
        alone("nyu2022_2111", "train.epochs=2"),
        alone("nyu2022_2111", "train.epochs=3", "train.seed=1"),
        alone("nyu2022_2111", "train.batch_size=64"),
    )
    machine.plan(1e6)
    assert [recipe.train.batch_size for recipe, _, _ in machine.timed] == [128, 64]


def test_the_faster_precision_is_proposed(monkeypatch) -> None:
    for bf16, proposed in ((3.0, ["train.precision=bf16"]), (0.1, [])):
        machine = Machine(monkeypatch, bf16=bf16)
        only(monkeypatch, alone("nyu2022_2111", "train.precision=bf16"))
        planned = machine.plan(1e6)
        found = row(planned, "nyu2022_2111")
        assert found["training"]["overrides"] == proposed
        assert ("bf16" in found["commands"][0]) == bool(proposed)
        assert len(machine.timed) == 2


def test_no_bf16_on_a_cpu_without_its_instructions(monkeypatch) -> None:
    machine = Machine(monkeypatch, instructions=None)
    teacher = training("teacher", "teacher_wrn+two_cores", ("train.precision=bf16",))
    student = training("student", "kd+two_cores", ("train.epochs=3", "train.precision=bf16"))
    only(monkeypatch, Candidate(About(), student, teacher))
    found = row(machine.plan(1e6), "kd+two_cores")
    assert [recipe.train.precision for recipe, _, _ in machine.timed] == ["auto", "auto"]
    assert found["teacher"]["overrides"] == []
    assert found["training"]["overrides"] == ["train.epochs=3"]
    assert "bf16" not in " ".join(found["commands"])


# The budget of the command itself


@pytest.mark.long
@pytest.mark.parametrize("takes_s", [2.0, 6.0, 13.0, 30.0])
def test_measuring_keeps_its_time(takes_s: float, monkeypatch) -> None:
    machine = Machine(monkeypatch, takes_s=takes_s)
    planned = machine.plan(1e7)  # everything could fit
    assert planned["measured_s"] <= max(BUDGET_S, takes_s)
    assert 1 <= len(machine.timed) <= BUDGET_S / takes_s
    assert len(planned["recipes"]) > 20


@pytest.mark.long
def test_slow_start_leaves_less_time(machine) -> None:
    planned = time_plan.plan(1e7, None, None, machine.now - 40.0)
    assert planned["measured_s"] <= max(BUDGET_S, 40 + machine.takes_s)
    assert len(machine.timed) == 1  # the first is timed in any case


@pytest.mark.long
def test_what_cannot_fit_is_not_timed(machine) -> None:
    planned = machine.plan(60)
    assert "WRN-28-10" not in {flops.network_cost(r, role, 10).name for r, role, _ in machine.timed}
    kd = row(planned, "kd")
    assert not kd["is_timed"] and not kd["fits"] and kd["training"]["steps"] == 0
    # By the rates of the others: validation is counted as its operations here.
    teacher = kd["teacher"]
    seconds = (teacher["flop"] + 200 * 5_000 * 2 * 5_243_330_176) / RATE
    assert teacher["minutes"] == pytest.approx(seconds / 60, rel=0.01)
    assert teacher["high"] == pytest.approx(1.5 * teacher["minutes"])
    assert teacher["low"] == pytest.approx(teacher["minutes"] / 1.5)


# What is shown


@pytest.mark.long
def test_what_fits_comes_first_and_best_of_it(machine) -> None:
    planned = machine.plan(600)
    fits = [row["fits"] for row in planned["recipes"]]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    for row_ in planned["recipes"]:
        assert row_["fits"] == (row_["minutes"] <= 600)
    fitting = [row for row in planned["recipes"] if row["fits"] and row["role"] == "student"]
    assert planned["best"] == fitting[0]["recipe"]
    accuracies = [row["accuracy"] or 0 for row in fitting]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.long
def test_no_accuracy_of_what_was_not_measured(machine) -> None:
    noted = {a.command.split("--recipe ")[1].split()[0]: a for _, _, a in recipes.shipped()}
    planned = machine.plan(120)
    for row_ in planned["recipes"]:
        if row_["recipe"] == "student_alone+two_cores":  # the control that two_cores names
            assert (row_["accuracy"], row_["seeds"], row_["teacher"]) == (65.62, 3, None)
            continue
        about = noted[row_["recipe"]]
        assert row_["accuracy"] == about.measured_accuracy
        assert (row_["accuracy"] is None) == (about.accuracy == "not yet run")
        assert (row_["accuracy"] is None) == (row_["seeds"] is None)


@pytest.mark.long
def test_only_students_that_keep_the_rules(machine) -> None:
    planned = machine.plan(120, rules="nyu2022")
    names = {row["recipe"] for row in planned["recipes"]}
    assert {"kd", "nyu2022_2111", "nyu2022_n3_b2_c85", "kd_cutmix+two_cores"} <= names
    assert not names & {"fast_teacher", "nyu2023_og", "simkd", "teacher_wrn"}
    assert {"nyu2023_og", "simkd", "teacher_wrn"} <= set(planned["against_the_rules"])
    assert planned["broken_rules"].keys() == set(planned["against_the_rules"])
    assert planned["broken_rules"]["teacher_wrn"] == [
        "it trains a teacher, and the rules are for students"
    ]
    assert planned["broken_rules"]["simkd"] == [
        "the last layer feeds the average pool: a projector is between them"
    ]


def test_unknown_rules_are_refused_before_any_work(machine) -> None:
    with pytest.raises(UserError, match="--rules nyu1999 is unknown; allowed: nyu2022, nyu2025"):
        machine.plan(120, rules="nyu1999")
    assert machine.timed == []


def test_unknown_images_are_refused_before_any_work(machine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no images"):
        machine.plan(120, data=str(tmp_path))
    assert machine.timed == []


@pytest.mark.long
def test_nothing_fits_and_the_quickest_is_named(machine) -> None:
    planned = machine.plan(0.1)
    assert planned["best"] is None
    assert not any(row["fits"] for row in planned["recipes"])
    assert planned["quickest"] == min(planned["recipes"], key=lambda r: r["minutes"])["recipe"]


@pytest.mark.long
def test_control_is_proposed_with_its_accuracy(machine) -> None:
    found = row(machine.plan(1000), "student_alone+two_cores")
    assert found["commands"] == ["python cli.py distill --recipe student_alone+two_cores"]
    assert (found["accuracy"], found["seeds"]) == (65.62, 3)


@pytest.mark.long
def test_whether_images_are_published_is_found_out(machine) -> None:
    for data, published in ((None, "cifar10"), ("cifar100", "cifar100"), ("synthetic", None)):
        assert machine.plan(1, data=data)["published"] == published


# A training of just the budget


def fills(machine: Machine, minutes: float, **more: Any) -> Any:
    return machine.plan(minutes, **more)["fills_minutes"]


def test_most_accurate_student_fills_the_minutes(machine, monkeypatch) -> None:
    small = alone("nyu2022_2111", "train.epochs=1", measured_accuracy=60.0)
    large = alone("nyu2022_2111", "train.epochs=40", "train.seed=1", measured_accuracy=90.0)
    only(monkeypatch, small, large)
    times = sorted(each["minutes"] for each in machine.plan(1e6)["recipes"])
    assert times[1] == pytest.approx(40 * times[0])
    command = "python cli.py distill --recipe nyu2022_2111"
    for share, seed in ((0.24, ""), (0.26, " --set train.seed=1")):
        budget = float(f"{share * times[1]:.3g}")
        found = fills(machine, budget / 0.9)
        assert found["minutes"] == pytest.approx(budget, rel=0.01)
        assert found["recipe"] == "nyu2022_2111"
        assert found["command"] == f"{command}{seed} --set train.minutes={found['minutes']:g}"


def test_nothing_fills_minutes_that_are_taken(machine, monkeypatch) -> None:
    only(monkeypatch, alone("nyu2022_2111", "train.epochs=2"))
    (only_row,) = machine.plan(1e6)["recipes"]
    assert fills(machine, 1.01 * only_row["minutes"]) is None
    assert fills(machine, 1.99 * only_row["minutes"]) is None
    assert fills(machine, 2.01 * only_row["minutes"]) is not None
    assert fills(machine, 0.99 * only_row["minutes"]) is not None


def test_nothing_fills_minutes_shorter_than_an_epoch(machine, monkeypatch) -> None:
    only(monkeypatch, alone("nyu2022_2111", "train.epochs=2"))
    (only_row,) = machine.plan(1e6)["recipes"]
    epoch = only_row["minutes"] / 2 / 0.9
    assert fills(machine, 0.99 * epoch) is None
    assert fills(machine, 1.01 * epoch) is not None


def test_teachers_and_distilled_students_fill_no_minutes(machine, monkeypatch) -> None:
    teacher = training("teacher", "teacher_wrn+two_cores", ())
    taught = training("student", "kd+two_cores", ())
    only(monkeypatch, Candidate(About(), teacher, None), Candidate(About(), taught, teacher))
    assert fills(machine, 1.0) is None


def test_precision_that_was_not_timed_is_left_out(machine, monkeypatch) -> None:
    fast = alone("fast_alone", "train.precision=bf16", "train.epochs=20")
    small = alone("nyu2022_2111", "train.epochs=1", measured_accuracy=60.0)
    only(monkeypatch, fast, small)
    machine.takes_s = 100  # so that only the first is timed
    minutes = 0.4 * row(machine.plan(1e6), "fast_alone")["minutes"]
    found = {each["recipe"]: each["is_timed"] for each in machine.plan(minutes)["recipes"]}
    only(monkeypatch, replace(fast, about=About(measured_accuracy=94.4)), small)
    assert found == {"fast_alone": False, "nyu2022_2111": True}
    assert "fast_alone" in (command := fills(machine, minutes)["command"])
    assert ("bf16" in command) == row(machine.plan(minutes), "fast_alone")["is_timed"]


@pytest.mark.long
@pytest.mark.parametrize("minutes", [1, 60])
def test_proposed_command_is_a_recipe_under_the_rules(machine, minutes: int) -> None:
    planned = machine.plan(minutes, rules="nyu2025")
    found = planned["fills_minutes"]
    words = found["command"].split()
    sets = [value for option, value in pairwise(words) if option == "--set"]
    made = recipes.load(words[words.index("--recipe") + 1], sets).recipe
    assert made.train.minutes == found["minutes"] and made.train.epochs is None
    assert found["recipe"] not in planned["against_the_rules"]


@pytest.mark.long
def test_other_images_change_classes_and_commands(machine) -> None:
    planned = machine.plan(1e4, data="cifar100")
    kd = row(planned, "kd")
    assert kd["training"]["parameters"] == 4_697_162 + 257 * 90
    assert all("--data cifar100" in command for command in kd["commands"])


@pytest.mark.long
def test_images_of_a_path_are_counted(machine) -> None:
    few, many = (row(machine.plan(1e4, data=d), "nyu2022_2111") for d in ("synthetic", None))
    share = few["training"]["flop"] / many["training"]["flop"]
    n = len(time_plan.load_data_set.load("synthetic", "train").labels)
    trained = (n - round(0.2 * n)) // 128 * 128
    assert share == pytest.approx(trained / 39_936)


def test_command_quotes_special_characters() -> None:
    each = training("student", "student_alone", ("optim.betas=[0.9, 0.99]", "optim.name=adam"))
    assert "--set 'optim.betas=[0.9, 0.99]'" in each.command(None)
    assert isinstance(each, PlannedTraining)


def test_scaled_time_range_keeps_its_proportions() -> None:
    assert TimeRange(1.0, 0.5, 2.0, 3).scaled(10) == TimeRange(10.0, 5.0, 20.0, 3)


@pytest.mark.long
def test_the_timed_recipe_is_reported(machine: Machine) -> None:
    tasks: dict[str, tuple[int, int]] = {}
    planned = machine.plan(120, progress=lambda what, *items: tasks.update({what: items}))
    assert tasks.keys() == {f"timing {row['recipe']}" for row in planned["recipes"]}
    assert all(done == total == len(tasks) for done, total in tasks.values()), "every task ends"


@pytest.mark.long
def test_other_precision_is_compared_in_equal_batches(machine: Machine) -> None:
    """A whole batch of the first one would be compared with a small one of the other."""
    rivals = list[float]()
    measure = machine.measure

    def noting(recipe, role, teacher, images, until, rival_s):  # type: ignore[no-untyped-def]
        rivals.append(rival_s)
        return replace(measure(recipe, role, teacher, images, until), first_s=0.25)

    machine.patch.setattr(measure_speed, "measure", noting)
    machine.plan(120)
    assert set(rivals) == {math.inf, 0.25}


@pytest.mark.long
def test_recipes_that_fit_are_timed_first(machine: Machine) -> None:
    """There is time for six measurements: two each of the most accurate recipe and of a teacher, in
    two precisions, and two of another recipe that fits, not of a more accurate one that does not.
    """
    machine.takes_s = 7.0
    other = "kd_cutmix+two_cores"
    minutes = {row["recipe"]: row["minutes"] for row in machine.plan(1e6)["recipes"]}
    budget = 1.1 * minutes["fast_alone"]
    assert minutes[other] < budget < minutes["fast_kd"] < time_plan.FASTEST * budget
    planned = machine.plan(budget)
    timed = {row["recipe"] for row in planned["recipes"] if row["is_timed"]}
    assert timed == {"fast_alone", "fast_teacher", other}
