"""The `data` commands: download, verify and describe a data set."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import echo, print_facts, stderr
from distill.cli.options import JsonOption, SameDataOption
from distill.errors import Failure, UserError

app = typer.Typer(no_args_is_help=True, help="The images.")


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="synthetic, cifar10, cifar100 or a path.")
    ] = "cifar10",
    data: SameDataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a set holds, and whether it is the genuine CIFAR-10, in any container or order."""
    from distill.data.sources import image_set
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        facts = image_set.info(data or source, progress=display.progress)
    print_facts(facts, as_json)
    if facts["faults"]:
        raise UserError("\n".join(facts["faults"]))


@app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="cifar10 or cifar100.")
    ] = "cifar10",
    into: Annotated[Path, typer.Option("--into", help="Where to.")] = Path("data"),
    mirror: Annotated[
        list[str],
        typer.Option(
            "--mirror",
            help="The address of the file itself, asked first; repeatable. More, with spaces "
            "between them, in $UNDERSTUDY_MIRRORS.",
            show_default=False,
        ),
    ] = [],
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="After which it ends, to be gone on with.")
    ] = 120.0,
) -> None:
    """Download the official archive, resumed and checked; or check the one that is there."""
    from distill.data.sources import download as room
    from distill.terminal.download_progress import DownloadDisplay

    with DownloadDisplay(stderr()) as progress:
        path = room.fetch(source, into, mirrors=mirror, progress=progress, total_s=60 * minutes)
    echo(f"{path}: the official archive, md5 {room.ARCHIVES[source].md5}")


@app.command()
def verify(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="cifar10 or a path.")] = "cifar10",
    data: SameDataOption = None,
) -> None:
    """Read every image; exit 1 where they are not the published CIFAR-10, all of it."""
    from distill.data.sources import image_set
    from distill.terminal.progress import ProgressDisplay

    source = data or source
    with ProgressDisplay(stderr()) as display:
        facts = image_set.info(source, progress=display.progress)
    if facts["faults"]:
        raise Failure("\n".join(facts["faults"]))
    if not facts["is_genuine"]:
        raise Failure(
            f"{source} can be read, {facts['train_images']:,} and {facts['test_images']:,} images, "
            f"and is not the published CIFAR-10 (genuine: {facts['genuine']})."
        )
    echo(f"{source}: {facts['genuine']}, every image")
