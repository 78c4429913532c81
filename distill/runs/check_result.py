"""Check that a finished run's result.json contradicts neither its recipe nor its journal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.errors import UserError
from distill.events import Event, Start
from distill.files import run_json_schemas
from distill.files.escape_text import visible
from distill.recipe import network_cost
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RunFolder

LONGEST_NAME = 80  # characters of a network's name in a message
BYTES = 4  # of a parameter: the final weights are float32


# Keys of result.json that the last start event of the journal has too.
SHARED = ("network", "parameters", "epochs", "device", "precision", "processes")


def check_figures(run: RunFolder, recipe: Recipe) -> None:
    """Raise UserError, listing every contradiction, if result.json has other figures than it must.

    The recipe determines the role, the network's name, its number of parameters and the epochs. If
    only building the network shows its size, the parameters must fit into the weights file. Keys
    that an earlier version did not write are not compared.
    """
    result = run.result()
    faults = [*_faults_of_network(run, recipe, result), *_faults_of_epochs(recipe, result)]
    if faults:
        raise _contradiction(run, run.recipe.name, faults)


def check_journal(run: RunFolder, events: Sequence[Event]) -> None:
    """Raise UserError if result.json has other values than the last start event of the journal.

    This covers what the recipe does not determine: the accuracy of the teacher on held-out images,
    the epochs of a run by minutes, and the size of a network that only building it shows. A journal
    that was deleted is not compared.
    """
    starts = [event for event in events if isinstance(event, Start)]
    if not starts:
        return
    result, start = run.result(), starts[-1]
    pairs = [(key, result.get(key), getattr(start, key)) for key in SHARED if key in result]
    pairs.append(("the teacher's top1", result["teacher"]["top1"], start.teacher_top1))
    faults = [
        f"{name} is {_shown(ours)} instead of {_shown(theirs)}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]
    if faults:
        raise _contradiction(run, run.journal.name, faults)


def _contradiction(run: RunFolder, other: str, faults: Sequence[str]) -> UserError:
    return UserError(
        f"{run.result_file} contradicts {other}: {'; '.join(faults)}.\n{run_json_schemas.RETRAIN}"
    )


def _shown(value: object) -> str:
    return "missing" if value is None else visible(str(value))[:LONGEST_NAME]


def _faults_of_network(run: RunFolder, recipe: Recipe, result: Mapping[str, Any]) -> Iterator[str]:
    if not {"role", "class_names"} <= result.keys():  # whoever reads them names the missing key
        return
    table = recipe.student if result["role"] == "student" else recipe.teacher
    if table is None:
        yield f"it is the result of a {result['role']}, which the recipe does not have"
        return
    n_classes = len(result["class_names"])
    name = network_cost.summary(table, n_classes)
    described = network_cost.describe(table, n_classes)
    network, parameters = result.get("network", name), result.get("parameters", 0)
    if network != name:
        yield f"its network is {visible(network)[:LONGEST_NAME]} instead of {name}"
    if described is not None and "parameters" in result and parameters != described.parameters:
        yield f"it has {parameters:,} parameters instead of {described.parameters:,}"
    weights = run.weights(result["role"])
    if described is None and weights.is_file() and BYTES * parameters > weights.stat().st_size:
        yield f"it has {parameters:,} parameters, which {weights.name} is too small for"


def _faults_of_epochs(recipe: Recipe, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions of the numbers of epochs; a run by minutes has its own number."""
    epochs = result.get("epochs")
    if epochs is None:
        return
    expected = 0 if "imported" in result else recipe.train.epochs
    if recipe.train.minutes is None and epochs != expected:
        yield f"it has {epochs:,} epochs instead of {expected:,}"
    elif result.get("epoch", 0) > epochs:
        yield f"its best epoch is {result['epoch']:,} of {epochs:,}"
