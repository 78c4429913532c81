"""The `cache` commands: list, verify and delete cached teacher logits."""

from typing import Annotated

import typer

from distill.cli.console import echo, echo_json, stdout
from distill.cli.options import JsonOption, KeysArgument
from distill.errors import UserError

app = typer.Typer(no_args_is_help=True, help="The teachers' answers that are stored.")


@app.command()
def info(as_json: JsonOption = False) -> None:
    """List what is stored: whose answers, to how many views, how large."""
    from distill.teacher import cache_files
    from distill.terminal.tables import cache_table

    rows = cache_files.entry_rows()
    if as_json:
        echo_json(rows)
    elif rows:
        stdout().print(cache_table(rows))
    else:
        echo(f"nothing is stored in {cache_files.logits_folder()}")


@app.command()
def verify(keys: KeysArgument = []) -> None:
    """Read every stored file, and ask the teacher again for some answers where it still is."""
    from distill.teacher import cache_files

    chosen = cache_files.find_entries(keys) if keys else cache_files.list_entries()
    if not chosen:
        echo(f"nothing is stored in {cache_files.logits_folder()}")
        return
    from distill.training import verify_cache

    verdicts = {stock.key: verify_cache.verify(stock) for stock in chosen}
    for key, verdict in verdicts.items():
        echo(f"{key[:12]}  {verdict}")
    bad = [key[:12] for key, verdict in verdicts.items() if not verdict.is_sound]
    if bad:
        echo(f"To have them asked again, type python cli.py cache drop {' '.join(bad)}", err=True)
        raise typer.Exit(1)


@app.command()
def drop(
    keys: KeysArgument = [],
    every: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
) -> None:
    """Delete stored answers; the next run that wants them asks its teacher."""
    from distill.teacher import cache_files

    if bool(keys) == every:
        asked = "KEY and --all exclude each other" if every else "nothing was named to be dropped"
        raise UserError(
            f"{asked}.\n"
            "Type python cli.py cache drop KEY…, as `cache info` lists them, or cache drop --all."
        )
    chosen = cache_files.list_entries() if every else cache_files.find_entries(keys)
    freed = sum(stock.n_bytes for stock in chosen)
    for stock in chosen:
        cache_files.delete_entry(stock)
    echo(f"{len(chosen)} dropped, {cache_files.format_size(freed)} freed")
