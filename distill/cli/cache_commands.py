"""The `cache` commands: list, verify and delete cached teacher logits."""

from typing import Annotated

import typer

from distill.cli.options import JsonOption, KeysArgument
from distill.cli.stdout_and_stderr import echo, echo_json, stdout
from distill.errors import UserError
from distill.format import format_size

app = typer.Typer(no_args_is_help=True, help="List, verify and delete cached teacher logits.")


@app.command()
def info(as_json: JsonOption = False) -> None:
    """List the cached logits: their teacher, number of views and size."""
    from distill.teacher import cache_files
    from distill.terminal.recipe_and_cache_tables import cache_table

    rows = cache_files.entry_rows()
    _note_unreadable()
    if as_json:
        echo_json(rows)
    elif rows:
        stdout().print(cache_table(rows))
    else:
        echo(f"no logits are cached in {cache_files.logits_folder()}")


@app.command()
def verify(keys: KeysArgument = []) -> None:
    """Read every cached file, and compare some logits with the teacher's, if it still exists."""
    from distill.teacher import cache_files

    _note_unreadable()
    chosen = cache_files.find_entries(keys) if keys else cache_files.list_entries()
    if not chosen:
        echo(f"no logits are cached in {cache_files.logits_folder()}")
        return
    from distill.training import verify_cache

    checks = {entry.key: verify_cache.verify(entry) for entry in chosen}
    for key, check in checks.items():
        echo(f"{key[:12]}  {check}")
    bad = [key[:12] for key, check in checks.items() if not check.is_sound]
    if bad:
        echo(f"To compute them again, type python cli.py cache drop {' '.join(bad)}", err=True)
        raise typer.Exit(1)


@app.command()
def drop(
    keys: KeysArgument = [],
    every: Annotated[bool, typer.Option("--all", help="Delete all cached logits.")] = False,
) -> None:
    """Delete cached logits; the next run that needs them computes them again."""
    from distill.teacher import cache_files

    if bool(keys) == every:
        problem = "KEY and --all exclude each other" if every else "no KEY was given"
        raise UserError(
            f"{problem}.\n"
            "Type python cli.py cache drop KEY, with a key that `cache info` lists, or cache drop "
            "--all."
        )
    _note_unreadable()
    chosen = cache_files.list_entries() if every else cache_files.find_entries(keys)
    freed = sum(entry.n_bytes for entry in chosen)
    for entry in chosen:
        cache_files.delete_entry(entry)
    echo(f"{len(chosen)} dropped, {format_size(freed)} freed")


def _note_unreadable() -> None:
    """Print a note on each folder of the cache that this user may not read."""
    from distill.teacher import cache_files

    for folder in cache_files.unreadable_folders():
        echo(f"note: {folder} may not be read by this user: its logits are not listed", err=True)
