"""Write the model card of a run."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill import statistics
from distill.data.sources.image_set import GENUINE
from distill.errors import UserError
from distill.events import measure_name
from distill.export.finished_run import FinishedRun
from distill.files.safe_text import markdown, markdown_block, markdown_code
from distill.format import counted, interval_text, percent, percent_number
from distill.recipe import recipes
from distill.recipe.schema import Teacher
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder

# The one import: from the root of this project's checkout, or with that on PYTHONPATH.
IMPORT = "import distill.export.timm_models  # tells timm of this network"
CITATION = Path(__file__).parents[2] / "CITATION.cff"


def generate(finished: FinishedRun, *, needs_import: bool) -> str:
    """Markdown, with the head that the Hugging Face hub reads."""
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
    taught = "trained from scratch on labels"
    if teacher["fingerprint"]:
        taught = f"distilled from {_teacher(teacher)}"
    return (
        f"A classifier of 32×32 images with {finished.n_parameters:,} parameters, {taught}. "
        f"Made by Understudy, as a {markdown(result['role'])}."
    )


def _teacher(known: dict[str, Any]) -> str:
    """Who taught: its network where its run is still there, its weights in any case."""
    named = []
    for path in known["runs"]:
        with suppress(UserError):
            told = run_folder.open_finished(path).result()
            top1 = told["metrics"][measure_name("top1", "test")]
            named.append(
                f"a {markdown(told['network'])} of {told['parameters']:,} parameters that is right "
                f"on {percent(top1)} of the test images"
            )
    if len(named) != len(known["runs"]) or not named:
        named = ["a teacher" if len(known["runs"]) < 2 else f"{len(known['runs'])} teachers"]
    return f"{' and '.join(named)} (weights {markdown_code(known['fingerprint'][:16])})"


def _data(finished: FinishedRun) -> str:
    data = finished.result["data"]
    known = "CIFAR-10, the published images" if _is_cifar10(finished) else "not CIFAR-10's"
    chosen = (
        f"the epoch was chosen on {data['val_images']:,} more that were held out"
        if data["val_images"]
        else "nothing was held out and the last epoch kept"
    )
    return (
        f"Trained on {counted(data['train_images'], 'image')} of the train split; {chosen}. "
        f"Measured on the test split, which chose nothing. The train split is {known} "
        f"(fingerprint {markdown_code(data['fingerprint'][:16])}). "
        f"Classes: {', '.join(map(markdown, finished.class_names))}."
    )


def _recipe(finished: FinishedRun) -> str:
    result = finished.result
    return (
        f"{markdown_code(result['recipe'])}, {counted(result['epochs'], 'epoch')}, of which epoch "
        f"{result['epoch']} is kept; precision {markdown(result['precision'])}, on "
        f"{markdown(result['device'])}. Fingerprint "
        f"{markdown_code(result['recipe_fingerprint'][:16])}. Its tables:\n\n"
        f"{markdown_block(_tables(finished), 'toml')}"
    )


def _tables(finished: FinishedRun) -> str:
    """The recipe as it was run, without its lab note, the paths of the machine it ran on and, of a
    student, the network of a teacher that it did not train: what is left of [teacher] is how
    several, or mirror images, were combined.
    """
    combined = recipes.ensemble_keys(finished.recipe)
    teacher: dict[str, bool] | bool = True
    if finished.role == "teacher":
        teacher = dict.fromkeys(recipes.TEACHING, True)
    elif combined:
        teacher = dict.fromkeys(Teacher.model_fields.keys() - combined, True)
    without = {"about": True, "data": {"source": True}, "teacher": teacher}
    return recipes.dumps(finished.recipe, without).strip()


def _results(finished: FinishedRun) -> str:
    metrics = finished.result["metrics"]
    nll, ece = (metrics[measure_name(name, "test")] for name in ("nll", "ece"))
    n = f"{finished.n_test:,} test images" if finished.n_test else "test split"
    reach = ""
    if finished.interval is not None:
        reach = f"| 95 % interval (Wilson) | {interval_text(finished.interval)} |\n"
    return (
        f"| {n} | |\n|---|---|\n"
        f"| right | {percent(finished.top1)} |\n"
        f"{reach}"
        f"| log-likelihood, negative | {nll:.4f} nats |\n"
        f"| calibration error, 15 bins | {ece:.4f} |\n\n"
        f"{_spread(finished)}"
    )


def _spread(finished: FinishedRun) -> str:
    """What other seeds of the same recipe gave, where their runs lie beside this one."""
    seeds = {finished.folder.path: finished.top1} | _siblings(finished)
    if len(seeds) == 1:
        return (
            "This is one run. The interval is the doubt that the number of test images leaves; how "
            "far another seed would be from it is not known."
        )
    known = statistics.mean_and_interval(list(seeds.values()))
    assert known.std is not None
    return (
        f"This is one run of {known.n} that differ in their seeds alone: {percent(known.mean)} ± "
        f"{percent_number(known.std)} points, mean and standard deviation. The interval is the "
        "doubt that the number of test images leaves."
    )


def _siblings(finished: FinishedRun) -> dict[Path, float]:
    """The accuracies of the finished runs beside this one that are it but for the seeds."""
    ours, found = _but_for_seeds(finished.folder), {}
    result = finished.folder.result()
    for other in run_folder.runs_in(finished.folder.path.parent):
        with suppress(UserError, OSError):
            if other.path == finished.folder.path or _but_for_seeds(other) != ours:
                continue
            if not run_folder.test_split_differences([result, other.result()]):
                metrics = other.result()["metrics"]
                found[other.path] = float(metrics[measure_name("top1", "test")])
    return found


def _but_for_seeds(folder: RunFolder) -> tuple[str, str, str]:
    """The identity of a run without its seeds and without where its images lay."""
    result, recipe = folder.result(), recipes.read(folder.recipe)
    alike = recipes.with_source(recipes.with_seed(recipe, 0), "")
    who = result["teacher"]["fingerprint"], result["data"]["fingerprint"]
    return recipes.fingerprint(alike), *who


def _limits(finished: FinishedRun) -> str:
    return (
        f"It knows {len(finished.class_names)} classes and answers with one of them whatever it is "
        "shown. It was measured on images like those it learnt from, of 32×32 pixels, and on no "
        "others: neither on corrupted or attacked ones, nor on photographs scaled down. Its "
        "probabilities are no more than the calibration error says."
    )


def _use(finished: FinishedRun, needs_import: bool) -> str:
    told = f"{IMPORT}\n" if needs_import else ""
    expects = (
        "float32 images [B, 3, 32, 32] in [0, 1]; it normalises inside"
        if needs_import
        else "float32 images [B, 3, 32, 32], normalised as `config.json` says"
    )
    return (
        f"```python\nimport timm\n{told}"
        'net = timm.create_model("local-dir:DIR", pretrained=True).eval()\n```\n\n'
        f"{'The import is from the root of the checkout of Understudy. ' if told else ''}"
        f"It takes {expects}, and returns logits [B, {len(finished.class_names)}]."
    )


def citation() -> str:
    """BibTeX, from CITATION.cff."""
    pairs = re.findall(r'(?m)^[ -]*(\w+): "?(.*?)"?$', CITATION.read_text())
    known: dict[str, Any] = dict(pairs)
    return (
        f"@software{{understudy,\n  title = {{{known['title']}}},\n"
        f"  author = {{{{{known['name']}}}}},\n  version = {{{known['version']}}}\n}}"
    )
