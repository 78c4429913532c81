"""Select finished runs as teachers and check that they fit the data."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn

from distill.components.build_network import load_trained_and_sha256
from distill.components.data_pipeline import TrainValSplit, split_images, split_indices
from distill.components.fingerprints import identity
from distill.components.read_test_split import identify_test
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet
from distill.errors import UserError
from distill.files.escape_text import shell_word, visible
from distill.format import counted
from distill.recipe import find_teacher_recipe, recipe_variants, recipes
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Student, Teacher
from distill.recipe.validation import value_text
from distill.runs import check_runs_match, run_folder
from distill.runs.run_folder import (
    RunFolder,
    newest_runs_in,
    open_finished,
    open_teacher,
    unreadable_results_in,
)
from distill.teacher import best_teacher
from distill.teacher.build_teacher import combine_teachers
from distill.teacher.teacher import FrozenTeacher
from networks.user_code import CodeNotAllowed

MOST_LISTED = 10  # runs in a message
RETRAIN = "train one on this data: python cli.py train-teacher --recipe teacher_wrn --data …"


def named_teachers(recipe: Recipe) -> list[RunFolder]:
    """Return the teacher runs that the recipe names; empty if no loss term reads a teacher."""
    if recipe.teacher is None or not recipes.has_teacher(recipe):
        return []
    return [RunFolder(Path(path)) for path in recipe.teacher.runs]


def network_of_teacher(recipe: Recipe) -> Student | Teacher | None:
    """Return the table of the network of the recipe's teacher; None without a finished one, or with
    several.
    """
    runs = named_teachers(recipe)
    if len(runs) != 1 or not runs[0].is_finished:
        return None
    trained = recipes.read(runs[0].recipe)
    return trained.teacher if runs[0].role == "teacher" else trained.student


def resolve_teachers(
    recipe: Recipe,
    images: ImageSet,
    split: TrainValSplit,
    earlier: Recipe | None,
    places: Iterable[Path],
    name: str = "",
) -> tuple[Recipe, list[str]]:
    """Return the recipe with its teachers filled in, and notes on the choice.

    Chooses the teachers that the recipe names; else those of `earlier`, the recipe of the run that
    is resumed; else the best finished teacher in the folders `places` that fits the data. A recipe
    whose loss terms read no teacher is returned unchanged. `name`: the recipe's name, for the error
    message. Raises UserError if no teacher is found, or if a teacher was named and no loss term
    reads one.
    """
    given = recipe.teacher.runs if recipe.teacher else ()
    if not recipes.has_teacher(recipe):
        if given:
            raise UserError(
                f"--teacher {given[0]} was given, but no term of this recipe reads a teacher.\n"
                "Leave --teacher out, or choose a recipe with one, such as kd."
            )
        return recipe, []
    if given:
        return recipe, []
    if earlier is not None and earlier.teacher and earlier.teacher.runs:
        return recipe_variants.with_teacher(recipe, earlier.teacher.runs), []
    chosen, notes = _choose_teacher(images, split, list(places), recipe, name)
    return recipe_variants.with_teacher(recipe, [str(chosen.path)]), notes


def _choose_teacher(
    images: ImageSet, split: TrainValSplit, places: list[Path], recipe: Recipe, name: str
) -> tuple[RunFolder, list[str]]:
    runs = {run.path.resolve(): run for place in places for run in newest_runs_in(place)}.values()
    reasons = {run: _reason_against(run, images, split) for run in runs}
    if found := [run for run in runs if reasons[run] is None]:
        return best_teacher.choose_best(
            found, 0 if split.held_out is None else len(split.held_out.labels)
        )
    passed = [
        f"\n{run.path} was skipped: {reason.replace(f'teacher {run.path} ', 'it ', 1)}"
        for run, reason in reasons.items()
        if reason
    ]
    more = [f"\nand {len(passed) - MOST_LISTED} more"] if len(passed) > MOST_LISTED else []
    raise UserError(
        "the recipe needs a teacher; none was named, and no finished one that fits this data is in "
        + " or ".join(f"{place}/" for place in places)
        + f".{''.join([*passed[:MOST_LISTED], *more])}\n"
        f"Train one: python cli.py train-teacher --recipe {find_teacher_recipe.teacher_for(name)} "
        f"--data {recipe.data.source}\nOr name one with --teacher RUN."
    )


def _reason_against(run: RunFolder, images: ImageSet, split: TrainValSplit) -> str | None:
    """Return why a run cannot be the teacher; None if it can.

    Empty for a student. An unfinished run has a role from its first checkpoint on.
    """
    try:
        if (run.role if run.is_finished else run_folder.role_begun(run)) != "teacher":
            return ""
        if not run.is_finished:
            path = shell_word(str(run.path))
            return f"it is not finished; finish it with python cli.py finish {path}"
        run.check_result()
        reasons = _reasons_against(run, images, split)
        return reasons[0].removesuffix(f"; {RETRAIN}") if reasons else None
    except (UserError, OSError) as fault:
        return str(fault).splitlines()[0]


def notes_on_broken_runs(
    recipe: Recipe, earlier: Recipe | None, places: Iterable[Path]
) -> list[str]:
    """Return notes on runs with an unreadable result in `places`, the folders to search for a
    teacher.

    Empty if no search is necessary: `recipe` or `earlier` (the recipe of the resumed run) names its
    teachers, or no loss term reads a teacher.
    """
    for candidate in (recipe, earlier):
        if candidate is not None and candidate.teacher and candidate.teacher.runs:
            return []
    if not recipes.has_teacher(recipe):
        return []
    return [note for place in places for note in unreadable_results_in(place)]


def load_teacher(
    recipe: Recipe, images: ImageSet, split: TrainValSplit, is_resumed: bool = False
) -> FrozenTeacher | None:
    """Load the recipe's teacher, several as an ensemble; None if no loss term reads a teacher.

    `is_resumed`: whether it is for a run that is resumed, whose teacher may have been moved.
    Raises UserError that lists all problems: a folder is not a finished run or has no weights; a
    teacher has other classes or other data, or was trained on images that this run holds out; a key
    of [teacher] or a loss term requires another number of teachers.
    """
    runs = [_open_run(run, is_resumed) for run in named_teachers(recipe)]
    faults = [fault for run in runs for fault in _reasons_against(run, images, split)]
    places = [run.path.resolve() for run in runs]
    faults += [
        f"teacher {place} was given {places.count(place)} times; an ensemble needs different ones"
        for place in dict.fromkeys(places)
        if places.count(place) > 1
    ]
    if len(runs) > 1:
        faults += [
            f"loss.{name} reads a teacher's feature maps, which cannot be combined across "
            f"{len(runs)} teachers; give one --teacher, or type --set loss.{name}=false"
            for name, term in recipe.loss.terms().items()
            if "live teacher" in term.needs
        ]
    if runs:
        faults += _count_problems(recipe, len(runs))
    if faults:
        raise UserError("\n".join(faults))
    if not runs:
        return None
    nets, digests = zip(*map(_load, runs), strict=True)
    return FrozenTeacher(combine_teachers(recipe, nets), "+".join(digests))


def _load(run: RunFolder) -> tuple[nn.Module, str]:
    """Load a teacher's network and the sha256 of its weights.

    Raises UserError, naming the run, if its code may not be run.
    """
    try:
        return load_trained_and_sha256(run)
    except CodeNotAllowed as fault:
        raise UserError(
            f"teacher {run.path}: {fault}\nOr name another teacher with --teacher OTHER."
        ) from fault


def _open_run(run: RunFolder, is_resumed: bool) -> RunFolder:
    """Open a teacher's run. Raises UserError if its folder is missing."""
    moved = (
        "\nIf its folder was moved, give the new one with --teacher RUN: a resumed run compares "
        "the teacher's weights, not its path."
    )
    try:
        return open_teacher(run.path)
    except UserError as fault:
        raise UserError(f"teacher {fault}{moved if is_resumed else ''}") from fault


def _count_problems(recipe: Recipe, n: int) -> Iterator[str]:
    """Yield a message for each key of [teacher] that does not fit `n` teachers."""
    options = recipe.teacher or Teacher()
    more = "give several with --teacher A --teacher B"
    if n == 1 and options.draw == "one":
        yield (
            'teacher.draw = "one" draws one of several teachers for each view, but 1 was given; '
            f"{more}, or type --set teacher.draw=all"
        )
    weights = f"teacher.weights = {value_text(options.weights)}"
    if options.weights and n == 1:
        yield (
            f"{weights} is for several teachers, but 1 was given; "
            f"{more}, or type --set teacher.weights=[]"
        )
    elif options.weights and len(options.weights) != n:
        given = counted(len(options.weights), "weight")
        yield (
            f"{weights} has {given} for {n} teachers; give one for each in "
            f"their order, as --set teacher.weights=[{','.join('1' * n)}], or [] for equal ones"
        )


def check_teachers(recipe: Recipe, variants: Sequence[Recipe] = ()) -> dict[str, str]:
    """Check that the images can be read and that the teachers, if any are named, fit them.

    Returns the fingerprints of train split, test split, class names and teachers, by name. The
    different values of the recipe and of `variants`, recipes with other images or teachers, are
    joined by " + ". Raises the UserErrors that a run of the recipe would raise later. Costs reading
    both splits and the teachers.
    """
    load_data_set.check(recipe.data.source, size=recipe.data.size)
    images = _train_split(recipe)
    load_teacher(recipe, images, split_images(recipe, images))
    prints = [_input_fingerprints(recipe, images)]
    prints += [_input_fingerprints(variant, _train_split(variant)) for variant in variants]
    return {name: " + ".join(dict.fromkeys(p[name] for p in prints)) for name in prints[0]}


def _train_split(recipe: Recipe) -> ImageSet:
    """Load the train split of a recipe as typed, whose `data.size` may be absent."""
    return load_data_set.load(recipe.data.source, "train", size=recipe.data.size)


def _input_fingerprints(recipe: Recipe, images: ImageSet) -> dict[str, str]:
    """Return the fingerprints of a recipe's images and teachers, by name.

    Raises UserError if a teacher is not a finished run.
    """
    test = identify_test(recipe.data.source, images, size=recipe.data.size)
    for run in named_teachers(recipe):
        open_finished(run.path)
    prints = identity(recipe, images, teachers_fingerprint(recipe), test)
    return {name: value for name, value in prints.items() if name != "recipe"}


def teachers_fingerprint(recipe: Recipe) -> str:
    """Return the fingerprints of the teachers' weights, joined by `+`; empty if there is none."""
    return check_runs_match.teachers_fingerprint(named_teachers(recipe))


def _reasons_against(run: RunFolder, images: ImageSet, split: TrainValSplit) -> list[str]:
    """Return the reasons why a run cannot be the teacher on these images, one line each."""
    if not run.is_finished:
        return [
            f"teacher {run.path} is not finished: it has no {run.result_file.name}; type python "
            f"cli.py finish {shell_word(str(run.path))}, or {RETRAIN}"
        ]
    try:
        result, weights = run.result(), run.weights(run.role)
        teacher_classes, fingerprint = tuple(result["class_names"]), result["data"]["fingerprint"]
    except UserError as fault:
        reason = str(fault).splitlines()[0].removesuffix(".")
        return [f"teacher {run.path} has a damaged {run.result_file.name}: {reason}; {RETRAIN}"]
    if not weights.exists():
        return [f"teacher {run.path} has no {weights.name}; {RETRAIN}"]
    if other_data := _other_data(run, teacher_classes, fingerprint, images):
        return [other_data]
    return [] if split.held_out is None else _held_out_overlap(run, images, split.held_out)


def _other_data(
    run: RunFolder, teacher_classes: tuple[str, ...], fingerprint: str, images: ImageSet
) -> str | None:
    """Return how the data of a teacher's run differs from these images; None if it does not.

    `teacher_classes`, `fingerprint`: the class names and the fingerprint of the run's images.
    """
    classes = images.class_names
    if len(teacher_classes) != len(classes):
        return (
            f"teacher {run.path} has {counted(len(teacher_classes), 'class', 'classes')}, "
            f"the data has {len(classes)}; {RETRAIN}"
        )
    if teacher_classes != classes:
        return (
            f"teacher {run.path} was trained on other classes ({_names(teacher_classes)}) than "
            f"this data has ({_names(classes)}); {RETRAIN}"
        )
    if fingerprint == images.fingerprint:
        return None
    if (size := _image_size(run)) not in (None, images.size):
        return (
            f"teacher {run.path} has images of {size}x{size} pixels, and this run of "
            f"{images.size}x{images.size}; type --set data.size={size}, or {RETRAIN}"
        )
    return (
        f"teacher {run.path} was trained on other images (fingerprint "
        f"{fingerprint[:12]}, here {images.fingerprint[:12]}), so it is unknown "
        f"whether it was trained on images that are held out here; {RETRAIN}"
    )


def _names(classes: Sequence[str]) -> str:
    """Return the first class names, for a message."""
    return visible(", ".join(classes[:3])) + (", …" if len(classes) > 3 else "")


def _image_size(run: RunFolder) -> int | None:
    """Return the size of a run's images in pixels; None if its recipe cannot be read."""
    try:
        return recipes.read(run.recipe).data.image_size
    except UserError:
        return None


def _held_out_overlap(run: RunFolder, images: ImageSet, held_out: ImageSet) -> list[str]:
    """Return a message if the teacher was, or may have been, trained on images of `held_out`.

    The teacher's recipe.toml determines its training images. It may have been edited, so it is only
    used if its fingerprint and number of held-out images are those in result.json. `images`: the
    whole train split.
    """
    result, teacher_recipe = run.result(), recipes.read(run.recipe)
    if "recipe_fingerprint" not in result or not check_runs_match.has_recipe_of_result(run):
        return [
            f"{run.recipe} is not the recipe that teacher {run.path} finished with, so it is "
            "unknown whether it was trained on images that are held out here; restore the file, "
            f"or {RETRAIN}"
        ]
    trained_on, teacher_held_out = split_indices(teacher_recipe, images)
    if result["data"].get("val_images", len(teacher_held_out)) != len(teacher_held_out):
        return [
            f"teacher {run.path} held out {result['data']['val_images']} images, but its recipe "
            f"holds out {len(teacher_held_out)}: it is unknown whether it was trained on images "
            f"that are held out here; {RETRAIN}"
        ]
    seen = {images.digests[i] for i in trained_on} & set(held_out.digests)
    if not seen:
        return []
    return [
        f"teacher {run.path} was trained on {len(seen):,} of the "
        f"{counted(len(held_out.labels), 'image')} that this run holds out and selects the best "
        f"epoch on: it held out {len(teacher_held_out):,} images.\n"
        f"Type --set data.holdout={teacher_recipe.data.holdout}, the teacher's own, or take another"
    ]
