"""Select the finished runs that serve as teachers, and check that they may."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet
from distill.errors import UserError
from distill.evaluation.predict import identify_test
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Teacher
from distill.recipe.validation import value_text
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder, broken_in, open_finished, open_run, runs_in
from distill.teacher import best_teacher
from distill.teacher.teacher import FrozenTeacher
from distill.training import build
from distill.training.build import TrainValSplit
from distill.training.fingerprints import identity

RETRAIN = "train one on this data: python cli.py train-teacher --recipe teacher_wrn --data …"


def named_teachers(recipe: Recipe) -> list[RunFolder]:
    """The runs that teach, as the recipe names them; none where nobody is asked."""
    if recipe.teacher is None or not recipes.has_teacher(recipe):
        return []
    return [RunFolder(Path(path)) for path in recipe.teacher.runs]


def resolve_teachers(
    recipe: Recipe,
    images: ImageSet,
    split: TrainValSplit,
    earlier: Recipe | None,
    places: Iterable[Path],
    name: str = "",
) -> tuple[Recipe, list[str]]:
    """The recipe with its teachers named: its own, else those `earlier` had, else the best that
    fits (see `best_teacher`); and notes on the choice.

    Raises UserError where nobody fits, or where a teacher was named that no term asks.
    """
    given = recipe.teacher.runs if recipe.teacher else ()
    if not recipes.has_teacher(recipe):
        if given:
            raise UserError(
                f"--teacher {given[0]} was given, and no term of this recipe asks a teacher.\n"
                "Leave --teacher away, or choose a recipe with one, such as kd."
            )
        return recipe, []
    if given:
        return recipe, []
    if earlier is not None and earlier.teacher and earlier.teacher.runs:
        return recipes.with_teacher(recipe, earlier.teacher.runs), []
    chosen, notes = _choose_teacher(images, split, list(places), recipe, name)
    return recipes.with_teacher(recipe, [str(chosen.path)]), notes


def _choose_teacher(
    images: ImageSet, split: TrainValSplit, places: list[Path], recipe: Recipe, name: str
) -> tuple[RunFolder, list[str]]:
    every = (run for place in places for run in runs_in(place) if _is_eligible(run, images, split))
    found = list({run.path.resolve(): run for run in every}.values())  # a place may come twice
    if found:
        return best_teacher.choose_best(
            found, 0 if split.held_out is None else len(split.held_out.labels)
        )
    broken = "".join(f"\n{note}" for place in places for note in broken_in(place))
    raise UserError(
        "the recipe needs a teacher; none was named, and no finished one that fits this data is in "
        + " or ".join(f"{place}/" for place in places)
        + f".{broken}\nTrain one: python cli.py train-teacher --recipe {recipes.teacher_for(name)} "
        f"--data {recipe.data.source}\nOr name one with --teacher RUN."
    )


def _is_eligible(run: RunFolder, images: ImageSet, split: TrainValSplit) -> bool:
    """Whether this run is a finished teacher that fits; a broken or foreign folder is not."""
    try:
        if not run.is_finished or run.role != "teacher":
            return False
        run.check_result()
        return not _problems(run, images, split)
    except (UserError, OSError):
        return False


def notes_on_broken_runs(
    recipe: Recipe, earlier: Recipe | None, places: Iterable[Path]
) -> list[str]:
    """Notes on broken runs among those that a teacher is searched in; none if it is named."""
    for known in (recipe, earlier):
        if known is not None and known.teacher and known.teacher.runs:
            return []
    if not recipes.has_teacher(recipe):
        return []
    return [note for place in places for note in broken_in(place)]


def load_teacher(recipe: Recipe, images: ImageSet, split: TrainValSplit) -> FrozenTeacher | None:
    """The network that teaches, several as an ensemble; None where no term asks.

    Raises UserError where a folder is no finished run, has no weights, other classes, other data,
    or has trained on images that this run holds out, or where the keys of [teacher] ask for another
    number of teachers; every faulty folder and key is named.
    """
    runs = [_open_run(run) for run in named_teachers(recipe)]
    faults = [fault for run in runs for fault in _problems(run, images, split)]
    places = [run.path.resolve() for run in runs]
    faults += [
        f"teacher {place} was given {places.count(place)} times; a mean wants different ones"
        for place in dict.fromkeys(places)
        if places.count(place) > 1
    ]
    if len(runs) > 1:
        faults += [
            f"loss.{name} reads a teacher's maps, and {len(runs)} teachers were given, which have "
            f"none in common; give one --teacher, or type --set loss.{name}=false"
            for name, term in recipe.loss.terms().items()
            if "live teacher" in term.needs
        ]
    if runs:
        faults += _count_problems(recipe, len(runs))
    if faults:
        raise UserError("\n".join(faults))
    nets = [build.load_trained(run) for run in runs]
    return FrozenTeacher(build.combine_teachers(recipe, nets)) if nets else None


def _open_run(run: RunFolder) -> RunFolder:
    """The run, which is there. Raises UserError otherwise, and says what to type if it moved."""
    try:
        return open_run(run.path)
    except UserError as fault:
        raise UserError(
            f"teacher {fault}\nIf its folder was moved, name the new one, --teacher RUN: a resumed "
            "run compares the teacher's weights, not its path."
        ) from fault


def _count_problems(recipe: Recipe, n: int) -> Iterator[str]:
    """The keys of [teacher] that do not go with so many teachers, one line each."""
    wanted = recipe.teacher or Teacher()
    more = "name several with --teacher A --teacher B"
    if n == 1 and wanted.draw == "one":
        yield (
            'teacher.draw = "one" draws one of several teachers for each view, and 1 teaches; '
            f"{more}, or type --set teacher.draw=all"
        )
    weights = f"teacher.weights = {value_text(wanted.weights)}"
    if wanted.weights and n == 1:
        yield (
            f"{weights} is for several teachers, and 1 teaches; "
            f"{more}, or type --set teacher.weights=[]"
        )
    elif wanted.weights and len(wanted.weights) != n:
        given = counted(len(wanted.weights), "weight")
        yield (
            f"{weights} has {given} for {n} teachers; give one for each in "
            f"their order, as --set teacher.weights=[{','.join('1' * n)}], or [] for equal ones"
        )


def check_teachers(recipe: Recipe, variants: Sequence[Recipe] = ()) -> dict[str, str]:
    """That the images can be read and the teachers, where some are named, may teach on them.

    Returns the fingerprints of train split, test split, class names and teachers by name (see
    `identity`); with `variants`, which have other images or teachers, those of each are joined.
    Raises UserError as a run would, later. Costs reading both splits and the teachers.
    """
    image_set.check(recipe.data.source)
    images = image_set.load(recipe.data.source, "train")
    load_teacher(recipe, images, build.split_images(recipe, images))
    known = [_input_fingerprints(recipe, images)]
    known += [
        _input_fingerprints(each, image_set.load(each.data.source, "train")) for each in variants
    ]
    return {name: " + ".join(dict.fromkeys(each[name] for each in known)) for name in known[0]}


def _input_fingerprints(recipe: Recipe, images: ImageSet) -> dict[str, str]:
    """The fingerprints of a recipe's images and teachers."""
    test = identify_test(recipe.data.source, images)
    for run in named_teachers(recipe):
        open_finished(run.path)
    known = identity(recipe, images, teachers_fingerprint(recipe), test)
    return {name: value for name, value in known.items() if name != "recipe"}


def teachers_fingerprint(recipe: Recipe) -> str:
    """The identity of the teachers' weights, joined by `+`; empty where nobody teaches."""
    return run_folder.teachers_fingerprint(named_teachers(recipe))


def _problems(run: RunFolder, images: ImageSet, split: TrainValSplit) -> list[str]:
    """Why this run cannot teach on these images, one line each."""
    if not run.is_finished:
        return [f"teacher {run.path} is not finished: it has no {run.result_file.name}; {RETRAIN}"]
    try:
        result, weights = run.result(), run.weights(run.role)
        theirs, fingerprint = tuple(result["class_names"]), result["data"]["fingerprint"]
    except UserError as fault:
        reason = str(fault).splitlines()[0].removesuffix(".")
        return [f"teacher {run.path} has a damaged {run.result_file.name}: {reason}; {RETRAIN}"]
    if not weights.exists():
        return [f"teacher {run.path} has no {weights.name}; {RETRAIN}"]
    ours = images.class_names
    if len(theirs) != len(ours):
        return [
            f"teacher {run.path} answers {counted(len(theirs), 'class', 'classes')}, "
            f"the data has {len(ours)}; {RETRAIN}"
        ]
    if theirs != ours:
        pairs = [f"{a} / {b}" for a, b in zip(theirs, ours, strict=True) if a != b]
        return [f"teacher {run.path} has other classes ({', '.join(pairs[:3])}); {RETRAIN}"]
    if fingerprint != images.fingerprint:
        return [
            f"teacher {run.path} was trained on other images (fingerprint "
            f"{fingerprint[:12]}, here {images.fingerprint[:12]}), so whether it "
            f"has seen what is held out is unknown; {RETRAIN}"
        ]
    return [] if split.held_out is None else _held_out_problem(run, images, split.held_out)


def _held_out_problem(run: RunFolder, images: ImageSet, held_out: ImageSet) -> list[str]:
    """The fault of a teacher that trained on held-out images: its split follows from the data.

    Its recipe.toml is believed only if result.json has its fingerprint and its number of held-out
    images: anybody can edit the file.
    """
    result, its_recipe = run.result(), recipes.read(run.recipe)
    prints = recipes.fingerprint_as_written(run.recipe), recipes.fingerprint(its_recipe)
    if result.get("recipe_fingerprint") not in prints:
        return [
            f"{run.recipe} is not the recipe that teacher {run.path} finished with, so whether it "
            f"has seen what is held out is unknown; bring the file back, or {RETRAIN}"
        ]
    trained_on, its_held_out = build.split_indices(its_recipe, images)
    if result["data"].get("val_images", len(its_held_out)) != len(its_held_out):
        return [
            f"teacher {run.path} held out {result['data']['val_images']} images, and its recipe "
            f"holds out {len(its_held_out)}: whether it has seen what is held out is unknown; "
            f"{RETRAIN}"
        ]
    seen = {images.digests[i] for i in trained_on} & set(held_out.digests)
    if not seen:
        return []
    return [
        f"teacher {run.path} was trained on {len(seen)} of the {len(held_out.labels)} images that "
        "this run holds out: its targets know the answers that select the best epoch.\n"
        f"Type --set data.holdout={its_recipe.data.holdout}, the teacher's own, or take another"
    ]
