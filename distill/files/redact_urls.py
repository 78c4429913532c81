"""Print URLs without passwords, tokens or secret query parameters.

The grammar is SQLAlchemy's (`sqlalchemy.engine.make_url`), which allows spaces, `/` and `?` in a
password; a test compares the two. SQLAlchemy itself is an optional dependency, but URLs in a
training command must be hidden even if it is not installed.
"""

import re
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
PAIR = re.compile("[^&;]+")  # one key=value of a query
PARAMETER = re.compile(r"(?P<key>;[^=;/#]*)=[^;/#]*")  # in a path: ;jsessionid=…
PATH = ("/", "./", "../", "~")  # beginnings of a path
URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*://)"
    r"(?:(?P<user>[^:/@?]*)(?P<password>:.*)?@)?"  # greedy: up to the last @
    r"(?P<address>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
# Query keys whose values are shown: none of them is a secret. Any other value is hidden.
HARMLESS = {
    "application_name", "cache", "charset", "check_same_thread", "connect_timeout", "driver",
    "gssencmode", "mode", "nolock", "port", "sslmode", "target_session_attrs", "timeout", "uri",
}  # fmt: skip
PIECE = 4  # shortest part of a password, in characters, that is replaced in a message too


def hide_secrets(text: str) -> str:
    """Hide the secrets in a URL, or in a command's argument that contains a URL.

    The password becomes `***`. So do the user name in http and https URLs, which may be a token,
    and the value of every query key that is not in `HARMLESS`: `?sslpassword=***`. In http and
    https URLs the fragment and the parameters of the path are hidden too. Other text is unchanged,
    including paths and, in the URL of a SQLite file, a part of its path after a `?`.
    """
    match = None if text.startswith(PATH) else URL.search(text)
    return text if match is None else text[: match.start()] + _redacted(match)


def _redacted(match: re.Match[str]) -> str:
    scheme, user, password, address, query = match.groups()
    is_web = "http" in scheme.lower()  # git+https among them
    fragment = ""
    if is_web:
        address = PARAMETER.sub(rf"\g<key>={HIDDEN}", address)
        address, in_address, _ = address.partition("#")
        query, in_query, _ = (None, "", "") if query is None else query.partition("#")
        fragment = f"#{HIDDEN}" if in_address or in_query else ""
        query = None if in_address else query  # it is a part of the fragment
    if user is not None:
        user = HIDDEN if is_web else user
        address = f"{user}{f':{HIDDEN}' if password else ''}@{address}"
    hidden = "" if query is None else "?" + PAIR.sub(lambda pair: _pair(pair[0], scheme), query)
    return f"{scheme}{address}{hidden}{fragment}"


def _pair(pair: str, scheme: str) -> str:
    key, equals, _ = pair.partition("=")
    if not equals:
        return pair if _is_file(scheme) else HIDDEN
    return pair if unquote(key).lower() in HARMLESS else f"{key}={HIDDEN}"


def _is_file(scheme: str) -> bool:
    """Whether a URL is a SQLite file's, in whose query text without `=` is a part of the path."""
    return scheme.lower().startswith("sqlite")


def without_secrets(message: str, url: str) -> str:
    """Hide secrets in a driver's message, which may quote the URL or a secret in any spelling."""
    message = message.replace(url, hide_secrets(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message


def _secrets(url: str) -> set[str]:
    """Return every secret in a URL, both as typed and URL-decoded.

    They are the password, the query values to hide and the values nested in them: x in `PWD=x`.
    """
    match = URL.search(url)
    if match is None:
        return set()
    raw = [(match["password"] or "")[1:]]
    if match["scheme"].lower().startswith("http"):
        raw.append(match["user"] or "")
    # A driver that parses the address in another way may quote a part of the password.
    spellings = " ".join((raw[0], unquote(raw[0]), unquote(unquote(raw[0]))))
    pieces = re.split(r"\W+", spellings) + re.split("[^A-Za-z0-9]+", spellings)
    raw += [piece for piece in pieces if len(piece) >= PIECE]
    for pair in re.split("[&;]", match["query"] or ""):
        key, equals, value = pair.partition("=")
        is_path = not equals and _is_file(match["scheme"])
        if not is_path and unquote(key).lower() not in HARMLESS:
            secret = value if equals else key
            inner = re.split(r"[;\s]", unquote_plus(secret))
            raw += [secret, *(each.partition("=")[2] for each in inner)]
    return {form for each in raw for form in (each, unquote(each), unquote_plus(each)) if form}
