"""The `doctor` command: check this machine before a training."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.options import DataOption, JsonOption, SetOption, complete_recipe
from distill.cli.stdout_and_stderr import echo_json, loading_libraries, stderr, stdout
from distill.errors import Failure
from distill.format import counted

if TYPE_CHECKING:
    from distill.check_installation import Check
    from distill.recipe.recipes import Recipe


def doctor(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Compare memory and disk with the needs of this recipe.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    data: DataOption = None,
    set_: SetOption = [],
    as_json: JsonOption = False,
) -> None:
    """Check Python, libraries, device, memory, disk, images and convolutions on this machine.

    Exits with 1 if a training would fail, and says what to do about it.
    """
    from distill.check_installation import check_installation
    from distill.cli.train_commands import resolve

    resolved = None if recipe is None else resolve(recipe, data, set_).recipe
    checks = check_installation()
    if all(check.state != "fault" for check in checks):  # else the libraries cannot be imported
        source = data or ("cifar10" if resolved is None else resolved.data.source)
        checks += _check_machine(resolved, source)
    _print(checks, as_json)


def _check_machine(recipe: "Recipe | None", source: str) -> list["Check"]:
    """Check the machine; if torch or another library cannot be imported, return that fault."""
    from distill.check_installation import failed_import
    from distill.terminal.progress import ProgressDisplay

    try:
        with loading_libraries():
            from distill.training.check_machine import check_machine
    except (ImportError, OSError, MemoryError, RuntimeError) as fault:
        return [failed_import(fault)]
    with ProgressDisplay(stderr()) as display:
        return check_machine(recipe, source, progress=display.progress)


def _print(checks: list["Check"], as_json: bool) -> None:
    """Print the checks; raise Failure, or exit with 1 after JSON, if one is a fault."""
    faults = [check.name for check in checks if check.state == "fault"]
    if as_json:
        echo_json({"ok": not faults, "checks": [asdict(check) for check in checks]})
        if faults:
            raise typer.Exit(1)
        return
    from distill.terminal.doctor_table import doctor_table

    stdout().print(doctor_table(checks))
    if faults:
        listed = "; ".join(faults)
        raise Failure(f"Training would fail here: {counted(len(faults), 'fault')} ({listed}).")
