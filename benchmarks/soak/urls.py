"""Pass URLs with secrets to all code that prints or writes URLs; no secret may appear there."""

import json
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

from accelerate import Accelerator

from benchmarks.soak import commands
from benchmarks.soak.outcome import Outcome
from distill.errors import Failure, UserError
from distill.files import redact_urls
from distill.sweep.storage import Storage, url_of
from distill.training import environment

SCHEMES = (
    "postgresql", "postgresql+psycopg", "mysql+pymysql", "mssql+pyodbc", "oracle",
    "mariadb", "x",
)  # fmt: skip
SECRET_KEYS = (
    "password", "PASSWORD", "pass%77ord", "sslpassword", "passfile", "passwd", "pwd", "token",
    "secret", "sslkey", "options", "service", "auth", "X-Amz-Signature", "a b", "",
)  # fmt: skip
AROUND = ("", "/", " ", "@", ":", "?", "#", "&", "=", ";", "%", "%2F", "\n", "\t", "é", "'", '"')
SERVER = "127.0.0.1:9"  # nothing listens there


def secret_of(chance: random.Random) -> str:
    """Return a random secret that occurs in no message by chance."""
    return "Sw0rd" + "".join(chance.choices(string.ascii_letters + string.digits, k=12))


def address(secret: str, chance: random.Random) -> str:
    """Return the URL of a database with the secret in its password, its query, or both."""
    scheme, user = chance.choice(SCHEMES), chance.choice(["u", "a%40b", "", "u.v"])
    around = chance.choice(AROUND), chance.choice(AROUND)
    password = f"{around[0]}{secret}{around[1]}"
    password = chance.choice([password, quote(password, safe=""), secret])
    key, value = chance.choice(SECRET_KEYS), chance.choice([secret, quote(f"x y={secret}")])
    odbc = f"odbc_connect={quote_plus(f'DRIVER={{X}};SERVER=h;UID=u;PWD={secret}')}"
    pair = f"{key}={value}" if key else value
    query = chance.choice([pair, f"sslmode=require&{pair}", f"port=5432;{pair}", odbc])
    return chance.choice([
        f"{scheme}://{user}:{password}@{SERVER}/d",
        f"{scheme}://u@{SERVER}/d?{query}",
        f"{scheme}://{user}:{password}@{SERVER}/d?{query}",
        f"{scheme}:///d?{query}",
    ])  # fmt: skip


def web_address(secret: str, chance: random.Random) -> str:
    """Return an http or https URL with the secret in its user name, password or query."""
    login = chance.choice([f"u:{secret}@", f"{secret}@", f"{secret}:x@", ""])
    query = chance.choice(["", f"?sig={secret}"]) if login else f"?sig={secret}"
    return f"{chance.choice(['http', 'https', 'HTTP'])}://{login}{SERVER}/a.tar.gz{query}"


def url_secrets(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Print `tries` URLs with secrets in each way in which the program prints URLs."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    printers: dict[str, Callable[[str, str], str]] = {
        "a command's arguments in environment.json": lambda url, _: _described(url, accelerator),
        "a driver's message that quotes it": _quoted,
        "--storage, which is opened": lambda url, _: _opened(url, folder),
        "--mirror of `data fetch`": lambda url, _: _fetched(url, folder),
    }
    outcomes = []
    for what, print_ in printers.items():
        outcome = Outcome(f"a URL with a secret: {what}", "the URL with *** in place of secrets")
        for _ in range(tries):
            secret = secret_of(chance)
            make = web_address if "mirror" in what else address
            url = make(secret, chance)
            try:
                printed = print_(url, secret)
            except Exception as error:
                printed = f"{type(error).__name__}: {secret}"
            outcome.count(secret not in printed, f"{what}: {url!r} gives {printed!r:.300}")
        outcomes.append(outcome)
    return outcomes


def _described(url: str, accelerator: Accelerator) -> str:
    """Return the content of environment.json for a command with the URL in its arguments."""
    previous, sys.argv = sys.argv, ["cli.py", "sweep", "--storage", url, f"--storage={url}"]
    try:
        return json.dumps(environment.describe(accelerator))
    finally:
        sys.argv = previous


def _quoted(url: str, secret: str) -> str:
    message = f"cannot connect to {url} (password {secret}, {quote(secret)}): no such server"
    return redact_urls.without_secrets(message, url)


def _opened(url: str, folder: Path) -> str:
    """Try to open a sweep's storage at the URL; return the error message."""
    try:
        Storage(url_of(url, folder / "sweep"), 60)
    except (UserError, Failure) as refusal:
        return str(refusal)
    return "opened"


def _fetched(url: str, folder: Path) -> str:
    ended = commands.run("data", "fetch", "--into", folder / "data", "--mirror", url)
    return ended.out + ended.err + ended.exception
