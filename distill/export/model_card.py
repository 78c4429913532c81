"""Write the model card of a run."""

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill import statistics
from distill.data.sources.load_data_set import GENUINE, NAMED, SYNTHETIC
from distill.errors import UserError
from distill.events import measure_name
from distill.export.finished_run import FinishedRun
from distill.files.escape_text import markdown, markdown_block, markdown_code
from distill.format import counted, interval_text, nats, percent, percent_number
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.schema import STUDENT_READS, Teacher
from distill.runs import check_runs_match, commands_to_repeat, read_predictions, run_folder
from distill.runs.run_folder import RunFolder

# Works in the root of this project's checkout, and in any folder if it is installed.
CHECKOUT = (
    "The second import is Understudy's: it works in the root of its checkout, and in any folder "
    "once it is installed: `pip install -e CHECKOUT`, the path of that root.\n\n"
)
IMPORT = "import distill.export.timm_registration  # registers this network with timm"
CITATION = Path(__file__).parents[2] / "CITATION.cff"


def generate(finished: FinishedRun, *, needs_import: bool) -> str:
    """Return the card as Markdown, with the metadata that the Hugging Face hub reads.

    `needs_import`: whether the network must be registered with timm before it is loaded.
    """
    result = finished.result
    sections = {
        "Data": _data(finished),
        "Recipe": _recipe(finished),
        "Results": _results(finished),
        "Limits": _limits(finished),
        "Use": _use(finished, needs_import),
        "Citation": f"```bibtex\n{citation()}\n```",
    }
    title = markdown(result["network"])
    head = f"---\n{_metadata(finished)}\n---\n\n# {title}\n\n{_summary(finished)}"
    return "\n\n".join([head, *(f"## {k}\n\n{v}" for k, v in sections.items())]) + "\n"


def _metadata(finished: FinishedRun) -> str:
    lines = [
        "license: mit",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- timm",
        *(["- knowledge-distillation"] if finished.result["teacher"]["fingerprint"] else []),
        *(["datasets:", "- cifar10"] if _is_cifar10(finished) else []),
        "metrics:",
        "- accuracy",
    ]
    return "\n".join(lines)


def _is_cifar10(finished: FinishedRun) -> bool:
    return finished.result["data"]["fingerprint"] in GENUINE


def _summary(finished: FinishedRun) -> str:
    result, teacher = finished.result, finished.result["teacher"]
    training = "trained from scratch on labels"
    if "imported" in result:
        training = "whose weights were trained by another program"
    if teacher["fingerprint"]:
        training = f"distilled from {_teacher(result)}"
    return (
        f"A classifier of {finished.image_size}×{finished.image_size} images with "
        f"{finished.n_parameters:,} parameters, {training}. "
        f"Made by Understudy, as a {markdown(result['role'])}."
    )


def _teacher(result: dict[str, Any]) -> str:
    """Describe the teachers of a run: their networks if their runs still exist, and their weights.

    If the run of one is missing, or its folder holds another run now, no network is described.
    """
    teacher = result["teacher"]
    found, described = check_runs_match.teachers_of(result), []
    for run, fault in found:
        with suppress(UserError):
            if not fault:
                described.append(_described_teacher(run))
    n = len(found)
    names = " and ".join(described)
    if not n or len(described) < n:
        names = "a teacher" if n < 2 else f"{n} teachers"
        if teacher["top1"] is not None:
            accuracy = percent(teacher["top1"])
            names += f" whose run recorded {accuracy} accuracy on up to 1,024 held-out images"
    changed = check_runs_match.ANOTHER_RUN in (fault for _, fault in found)
    note = "; the folder of its run contains another run now" if changed else ""
    return f"{names} (weights {markdown_code(teacher['fingerprint'][:16])}{note})"


def _described_teacher(run: RunFolder) -> str:
    """Describe the network of a teacher's finished run with its accuracy."""
    result = run.result()
    is_known = read_predictions.n_test_images(run) is not None
    note = "" if is_known else f" ({read_predictions.NOT_VERIFIED})"
    top1 = result["metrics"][measure_name("top1", "test")]
    imported = result.get("imported")
    origin = f", imported from {markdown_code(str(imported['file']))}" if imported else ""
    return (
        f"a {markdown(result['network'])} of {result['parameters']:,} parameters with "
        f"{percent(top1)} accuracy on the test images{note}{origin}"
    )


def _data(finished: FinishedRun) -> str:
    data = finished.result["data"]
    source = "CIFAR-10, the published images" if _is_cifar10(finished) else "not CIFAR-10's"
    selection = (
        f"the best epoch was selected on {data['val_images']:,} held-out images"
        if data["val_images"]
        else "no images were held out, and the last epoch was used"
    )
    return (
        f"Trained on {counted(data['train_images'], 'image')} of the train split; {selection}. "
        f"Measured on the test split, by which nothing was selected. The train split is {source} "
        f"(fingerprint {markdown_code(data['fingerprint'][:16])}). "
        f"Classes: {', '.join(map(markdown, finished.class_names))}."
    )


def _recipe(finished: FinishedRun) -> str:
    result = finished.result
    early = run_folder.early_end(result)
    ended = f", finished early {early}" if early else ""
    weights = f"epoch {result['epoch']}" if result["epoch"] or not early else "that step"
    return (
        f"{markdown_code(result['recipe'])}, {counted(result['epochs'], 'epoch')}{ended}, weights "
        f"of {weights}; precision {markdown(result['precision'])}, on "
        f"{markdown(result['device'])}. Fingerprint "
        f"{markdown_code(result['recipe_fingerprint'][:16])}. Its tables:\n\n"
        f"{markdown_block(_tables(finished), 'toml')}"
        f"{_training_commands(finished)}"
    )


def _training_commands(finished: FinishedRun) -> str:
    """Return the commands that train the run and its teachers, without paths of this machine."""
    result = finished.result
    commands = commands_to_repeat.training_commands(finished.folder, finished.recipe, result)
    if not commands:
        return ""
    missing = commands_to_repeat.without_command(commands, result)
    unknown = "\n\nHow its teacher was trained is not known here." if missing else ""
    text = commands_to_repeat.text_of(
        commands_to_repeat.with_names(commands, _names(commands, finished))
    )
    early = run_folder.early_end(result)
    longer = f". They train to the end; this run was finished early, {early}" if early else ""
    return (
        "\n\nThese commands of Understudy train it, after its teachers if it has any; `DATA` is "
        f"the folder of the images{longer}:\n\n{markdown_block(text, 'sh')}{unknown}"
    )


def _names(commands: Sequence[Sequence[str]], finished: FinishedRun) -> dict[str, str]:
    """Return a name for each path in commands: `runs/1`, `runs/2` …, `DATA` and `recipe.toml`."""
    runs = dict.fromkeys(
        word
        for words in commands
        for before, word in pairwise(words)
        if before in ("--teacher", "--out")
    )
    sources = {word for words in commands for before, word in pairwise(words) if before == "--data"}
    return {
        **dict.fromkeys(sources - {SYNTHETIC, *NAMED}, "DATA"),
        **{f"{run}/recipe.toml": f"runs/{i}/recipe.toml" for i, run in enumerate(runs, start=1)},
        **{run: f"runs/{i}" for i, run in enumerate(runs, start=1)},
    }


def _tables(finished: FinishedRun) -> str:
    """Return the recipe as TOML without [about] and paths of this machine.

    A student's [teacher] is reduced to the keys that combine several teachers or mirror images.
    """
    combined = recipe_variants.ensemble_keys(finished.recipe)
    teacher: dict[str, bool] | bool = True
    if finished.role == "teacher":
        teacher = dict.fromkeys(STUDENT_READS, True)
    elif combined:
        teacher = dict.fromkeys(Teacher.model_fields.keys() - combined, True)
    without = {"about": True, "data": {"source": True}, "teacher": teacher}
    return recipes.dumps(finished.recipe, without).strip()


def _results(finished: FinishedRun) -> str:
    metrics = finished.result["metrics"]
    nll, ece = (metrics[measure_name(name, "test")] for name in ("nll", "ece"))
    n = f"{finished.n_test:,} test images" if finished.n_test else "test split"
    interval, note = "", f" ({read_predictions.NOT_VERIFIED})"
    if finished.interval is not None:
        note = ""
        interval = f"| 95 % interval (Wilson) | {interval_text(finished.interval)} |\n"
    return (
        f"| {n} | |\n|---|---|\n"
        f"| accuracy | {percent(finished.top1)}{note} |\n"
        f"{interval}"
        f"| negative log-likelihood | {nats(nll)} |\n"
        f"| calibration error, 15 bins | {ece:.4f} |\n\n"
        f"{_spread(finished)}"
    )


def _spread(finished: FinishedRun) -> str:
    """Describe the spread over seeds, from the runs of the same recipe in the same folder."""
    seeds = [finished.top1, *map(read_predictions.verified_top1, _other_seeds(finished.folder))]
    if len(seeds) == 1:
        return (
            "This is one run. The interval reflects the number of test images; the spread over "
            "seeds is unknown."
        )
    spread = statistics.mean_and_interval(seeds)
    assert spread.std is not None
    return (
        f"This is one run of {spread.n} that differ in their seeds alone: {percent(spread.mean)} ± "
        f"{percent_number(spread.std)} points, mean and standard deviation. The interval reflects "
        "the number of test images."
    )


def _other_seeds(run: RunFolder) -> list[RunFolder]:
    """Return the finished runs in the same folder that differ from `run` only in their seeds.

    Of runs with the same seeds or the same weights, such as copies, one is returned.
    """
    identity, found = _identity_without_seeds(run), [(run, *_seeds_and_weights(run))]
    for other in run_folder.runs_in_same_folder(run):
        with suppress(UserError, OSError):
            if _is_same_but_seeds(other, run, identity):
                found.append((other, *_seeds_and_weights(other)))
    return check_runs_match.distinct(found)[1:]


def _is_same_but_seeds(other: RunFolder, run: RunFolder, identity: tuple[str, ...]) -> bool:
    """Whether `other` is a tested run with this identity and with the test split of `run`.

    Raises UserError if it is not finished, or if its recipe.toml was changed since.
    """
    if _identity_without_seeds(other) != identity:
        return False
    check_runs_match.check_recipe_of_result(other)
    read_predictions.verified_top1(other)
    return not check_runs_match.test_split_differences([run.result(), other.result()])


def _seeds_and_weights(run: RunFolder) -> tuple[tuple[int, int], str]:
    recipe = recipes.read(run.recipe)
    return (recipe.train.seed, recipe.data.seed), str(run.result()["weights"])


def _identity_without_seeds(folder: RunFolder) -> tuple[str, ...]:
    """Return the role, the fingerprints of recipe, teacher and data, and the run's early end.

    The recipe's fingerprint is without its seeds and data path.
    """
    result, recipe = folder.result(), recipes.read(folder.recipe)
    unseeded = recipe_variants.with_source(recipe_variants.with_seed(recipe, 0), "")
    inputs = result["teacher"]["fingerprint"], result["data"]["fingerprint"]
    early = run_folder.early_end(result)
    return str(result["role"]), recipe_fingerprint(unseeded), *inputs, early


def _limits(finished: FinishedRun) -> str:
    return (
        f"It predicts one of {len(finished.class_names)} classes for any image. It was measured on "
        f"images like its training images, of {finished.image_size}×{finished.image_size} pixels, "
        "and on no others: neither on corrupted "
        "or adversarial ones, nor on photographs scaled down. Its probabilities are only as "
        "accurate as the calibration error shows."
    )


def _use(finished: FinishedRun, needs_import: bool) -> str:
    registration = f"{IMPORT}\n" if needs_import else ""
    shape = f"[B, 3, {finished.image_size}, {finished.image_size}]"
    expects = (
        f"float32 images {shape} in [0, 1]; it normalises them itself"
        if needs_import
        else f"float32 images {shape}, normalised as in `config.json`"
    )
    return (
        f"```python\nimport timm\n{registration}"
        'net = timm.create_model("local-dir:DIR", pretrained=True).eval()\n```\n\n'
        f"{CHECKOUT if registration else ''}"
        f"It takes {expects}, and returns logits [B, {len(finished.class_names)}]."
    )


def citation() -> str:
    """Return BibTeX made from CITATION.cff."""
    pairs = re.findall(r'(?m)^[ -]*(\w+): "?(.*?)"?$', CITATION.read_text())
    cited: dict[str, Any] = dict(pairs)
    return (
        f"@software{{understudy,\n  title = {{{cited['title']}}},\n"
        f"  author = {{{{{cited['name']}}}}},\n  version = {{{cited['version']}}}\n}}"
    )
