"""The model card of a run: what it is, what it learnt from, how good it is, how it is loaded."""

import re
from pathlib import Path
from typing import Any

from distill.data.sources import GENUINE
from distill.events import measure_name
from distill.ship.finished import Finished

CITATION = Path(__file__).parents[2] / "CITATION.cff"


def written(finished: Finished, *, needs_import: bool) -> str:
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
    head = f"---\n{_metadata(finished)}\n---\n\n# {result['network']}\n\n{_what(finished)}"
    return "\n\n".join([head, *(f"## {k}\n\n{v}" for k, v in sections.items())]) + "\n"


def _metadata(finished: Finished) -> str:
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


def _is_cifar10(finished: Finished) -> bool:
    return finished.result["data"]["fingerprint"] in GENUINE


def _what(finished: Finished) -> str:
    result, teacher = finished.result, finished.result["teacher"]
    taught = "trained from scratch on labels"
    if teacher["fingerprint"]:
        of = (
            f" that is right on {teacher['top1']:.2%} of images held out" if teacher["top1"] else ""
        )
        taught = f"distilled from a teacher{of}"
    return (
        f"A classifier of 32×32 images with {finished.n_parameters:,} parameters, {taught}. "
        f"Made by Understudy, as a {result['role']}."
    )


def _data(finished: Finished) -> str:
    data = finished.result["data"]
    known = "CIFAR-10, the published images" if _is_cifar10(finished) else "no published set"
    return (
        f"Trained on {data['train_images']:,} images, selected on {data['val_images']:,} that were "
        f"held out of the train split, measured once on the test split. The train split is {known} "
        f"(fingerprint `{data['fingerprint'][:16]}`). "
        f"Classes: {', '.join(finished.class_names)}."
    )


def _recipe(finished: Finished) -> str:
    result = finished.result
    return (
        f"`{result['recipe']}`, {result['epochs']} epochs, of which epoch {result['epoch']} is "
        f"kept; precision {result['precision']}, on {result['device']}. Fingerprint "
        f"`{result['recipe_fingerprint'][:16]}`. Its tables:\n\n"
        f"```toml\n{_tables(finished)}\n```"
    )


def _tables(finished: Finished) -> str:
    """The recipe as it was run, without its lab note, the paths of the machine it ran on and, of a
    student, the table of a teacher that it did not train.
    """
    left_out = "about" if finished.role == "teacher" else "about|teacher"
    text = finished.folder.recipe.read_text()
    without = re.sub(rf"(?ms)^\[(?:{left_out})\].*?(?=^\[)", "", text)
    without = re.sub(r"(?m)^source = .*\n", "", without)
    return re.sub(r"(?ms)^runs = \[.*?\]\n", "", without).strip()


def _results(finished: Finished) -> str:
    metrics, (low, high) = finished.result["metrics"], finished.interval
    nll, ece = (metrics[measure_name(name, "test")] for name in ("nll", "ece"))
    return (
        f"| {finished.n_test:,} test images | |\n|---|---|\n"
        f"| right | {finished.top1:.2%} |\n"
        f"| 95 % interval (Wilson) | {low:.2%} to {high:.2%} |\n"
        f"| log-likelihood, negative | {nll:.4f} nats |\n"
        f"| calibration error, 15 bins | {ece:.4f} |\n\n"
        "This is one run. The interval is the doubt that the number of test images leaves; how far "
        "another seed would be from it is not known."
    )


def _limits(finished: Finished) -> str:
    return (
        f"It knows {len(finished.class_names)} classes and answers with one of them whatever it is "
        "shown. It was measured on images like those it learnt from, of 32×32 pixels, and on no "
        "others: neither on corrupted or attacked ones, nor on photographs scaled down. Its "
        "probabilities are no more than the calibration error says."
    )


def _use(finished: Finished, needs_import: bool) -> str:
    told = "import distill.ship.timm_models  # tells timm of this network\n" if needs_import else ""
    expects = (
        "float32 images [B, 3, 32, 32] in [0, 1]; it normalises inside"
        if needs_import
        else "float32 images [B, 3, 32, 32], normalised as `config.json` says"
    )
    return (
        f"```python\nimport timm\n{told}"
        'net = timm.create_model("local-dir:DIR", pretrained=True).eval()\n```\n\n'
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
