"""Numbers with their nouns, and lists of names that are cut."""

from distill.phrases import counted, describe_class_difference, listed
from distill.runs.run_folder import test_split_unnamed as unnamed
from distill.teacher.selection import _count_problems
from distill.training.verify_cache import CacheCheck
from tests.recipe.test_recipes import load

HUNDRED = [f"class {i}" for i in range(100)]


def test_a_number_and_its_noun() -> None:
    assert [counted(n, "design") for n in (0, 1, 1234)] == [
        "0 designs",
        "1 design",
        "1,234 designs",
    ]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_a_long_list_is_cut() -> None:
    assert listed(HUNDRED[:10]) == ", ".join(HUNDRED[:10])
    assert listed(HUNDRED) == ", ".join(HUNDRED[:10]) + " and 90 more"


def test_long_lists_of_classes_show_what_the_other_lacks() -> None:
    assert describe_class_difference(["a", "b"], ["b", "c"]) == ("a, b", "b, c")
    other = [*HUNDRED[:60], "zebra", *HUNDRED[61:]]
    ours, theirs = describe_class_difference(HUNDRED, other)
    assert ours == "100 classes, among them class 60"
    assert theirs == "100 classes, among them zebra"
    same = describe_class_difference(HUNDRED, HUNDRED[::-1])
    assert same == ("100 classes, none that the other lacks",) * 2


def test_one_of_something_is_singular() -> None:
    """In messages where the number may be one."""
    assert str(CacheCheck(1)).startswith("1 view;") and str(CacheCheck(2)).startswith("2 views;")
    [note] = unnamed([{"data": {}}, {"data": {"test_fingerprint": "f"}}])
    assert note.startswith("1 of 2 results is of an earlier version and has no fingerprint")
    [note] = unnamed([{"data": {}}, {"data": {}}])
    assert note.startswith("2 of 2 results are of an earlier version and have no fingerprint")
    recipe = load("tiny", ["teacher.weights=[1]"]).recipe
    assert "has 1 weight for 2 teachers" in next(_count_problems(recipe, 2))
