"""The `import-teacher` command: weights of another program as a teacher's run."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.options import SetOption
from distill.cli.stdout_and_stderr import echo, stderr
from distill.errors import UserError, collect_faults
from distill.format import percent

if TYPE_CHECKING:
    from distill.training.import_teacher import ImportRequest


def import_teacher(
    weights: Annotated[
        Path, typer.Option("--weights", help="A .safetensors, .pt or .pth file of its weights.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The run folder of the teacher.")],
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            help="The network, as in teacher.network: resnet32x4 …",
            show_default="inferred from the weights",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", "-d", help="Images: synthetic, cifar10, cifar100 or a path.")
    ] = "cifar10",
    mean: Annotated[
        str,
        typer.Option(
            "--mean",
            metavar="R,G,B",
            help="Mean of the images in [0, 1] that the network was trained with.",
            show_default="CIFAR's",
        ),
    ] = "",
    std: Annotated[
        str,
        typer.Option(
            "--std", metavar="R,G,B", help="Their standard deviation.", show_default="CIFAR's"
        ),
    ] = "",
    set_: SetOption = [],
) -> None:
    """Import a teacher that another program trained, and measure its accuracy.

    The layouts of the CRD benchmark (RepDistiller, mdistiller) are recognised, as is timm's for
    timm/NAME. The teacher's run and its students' runs record that it was imported.
    """
    from distill.runs.journal import Journal
    from distill.runs.run_folder import RunFolder
    from distill.terminal.progress import ProgressDisplay
    from distill.training import import_teacher as importing

    request = _checked_request(weights, out, network, data, (mean, std), set_)
    folder = RunFolder(out)
    journal = Journal(folder.journal)
    with ProgressDisplay(stderr()) as display:
        for event in importing.import_teacher(request, progress=display.progress):
            journal(event)
    result = folder.result()
    command = ["python", "cli.py", "distill", "--recipe", "kd", "--teacher", str(folder.path)]
    command += ["--data", data, "--set", "data.holdout=0"]
    echo(
        f"{result['network']}, {result['parameters']:,} parameters: "
        f"{percent(importing.top1(folder))} on {result['data']['test_images']:,} test images\n"
        f"imported to {folder.path}; to distil from it, type {shlex.join(command)}"
    )


def _checked_request(
    weights: Path,
    out: Path,
    network: str | None,
    data: str,
    mean_and_std: tuple[str, str],
    overrides: list[str],
) -> "ImportRequest":
    """Return what is to be imported. Raises UserError with all faults of what was typed.

    If `network` is None, it is inferred from the weights and named in a note.
    """
    from distill.cli.train_commands import combined_overrides
    from distill.training import import_teacher as importing

    faults: list[str] = []
    if network is None:
        with collect_faults(faults):
            network = importing.recognise(weights)
            echo(f"note: {weights} contains the weights of {network}", err=True)
    network = network or "wrn"  # any: there is a fault then
    combined_overrides(None, [f"teacher.network={network}", *overrides], None)  # allows typed code
    request = importing.ImportRequest(weights, importing.recipe_of("wrn", data), out)
    with collect_faults(faults):
        request = replace(request, recipe=importing.recipe_of(network, data, overrides))
    with collect_faults(faults):
        mean, std = map(_numbers, ("--mean", "--std"), mean_and_std)
        importing.check_normalisation(request.recipe, mean, std)
        request = replace(request, mean=mean, std=std)
    if faults:
        with collect_faults(faults):
            importing.check_files(request)
        raise UserError("\n".join(dict.fromkeys("\n".join(faults).split("\n"))))
    return request


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if text)
    except ValueError:
        raise UserError(
            f"{option} {text} is not three numbers, as in {option} 0.5,0.5,0.5"
        ) from None
