"""The `data` commands: download, verify and describe a data set."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import JsonOption, SameDataOption
from distill.cli.stdout_and_stderr import echo, print_facts, stderr
from distill.errors import Failure, UserError

app = typer.Typer(no_args_is_help=True, help="Download, verify and describe a data set.")


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="synthetic, cifar10, cifar100 or a path.")
    ] = "cifar10",
    data: SameDataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a data set, and check if it is the genuine CIFAR-10 or CIFAR-100, in any format."""
    from distill.data.sources import load_data_set
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        facts = load_data_set.info(data or source, progress=display.progress)
    # `genuine` says the same in words.
    shown = facts if as_json else {k: v for k, v in facts.items() if k != "is_genuine"}
    print_facts(shown, as_json)
    if facts["faults"]:
        raise UserError("\n".join(facts["faults"]))


@app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="cifar10 or cifar100.")
    ] = "cifar10",
    into: Annotated[Path, typer.Option("--into", help="Folder of the archive.")] = Path("data"),
    mirror: Annotated[
        list[str],
        typer.Option(
            "--mirror",
            help="URL of the file itself, tried first; repeatable. $UNDERSTUDY_MIRRORS may list "
            "more, separated by spaces.",
            show_default=False,
        ),
    ] = [],
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes", min=0.1, help="Time limit; the same command resumes the download."
        ),
    ] = 120.0,
) -> None:
    """Download the official archive and verify it; an interrupted download is resumed.

    Downloads nothing if the archive or its images are there already.
    """
    from distill.data.sources import download, load_data_set
    from distill.terminal.download_progress import DownloadDisplay
    from distill.terminal.progress import ProgressDisplay

    archive = download.archive_of(source)
    is_there = (into / archive.name).exists()
    if not is_there:
        with ProgressDisplay(stderr()) as display:
            found = load_data_set.find_genuine(source, into, progress=display.progress)
        if found:
            title = load_data_set.NAMED[source].title
            echo(f"{found}: {title}, every image; nothing was downloaded")
            return
    with DownloadDisplay(stderr()) as progress:
        path = download.fetch(source, into, mirrors=mirror, progress=progress, total_s=60 * minutes)
    note = "; nothing was downloaded" if is_there else ""
    echo(f"{path}: the official archive, md5 {archive.md5}{note}")


@app.command()
def verify(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="cifar10, cifar100 or a path.")
    ] = "cifar10",
    data: SameDataOption = None,
) -> None:
    """Read every image; exit 1 unless they are exactly the published CIFAR-10 or CIFAR-100."""
    from distill.data.sources import load_data_set
    from distill.terminal.progress import ProgressDisplay

    source = data or source
    with ProgressDisplay(stderr()) as display:
        facts = load_data_set.info(source, progress=display.progress)
    if facts["faults"]:
        raise Failure("\n".join(facts["faults"]))
    if not facts["is_genuine"]:
        raise Failure(
            f"{source} can be read, with {facts['train_images']:,} training and "
            f"{facts['test_images']:,} test images, but is not the published CIFAR-10 or CIFAR-100 "
            f"(genuine: {facts['genuine']})."
        )
    echo(f"{source}: {facts['genuine']}, every image")
