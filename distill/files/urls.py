"""Print URLs without passwords, tokens or secret query parameters.

The grammar is SQLAlchemy's (`sqlalchemy.engine.make_url`), which lets a password hold spaces, `/`
and `?`; a test compares the two. SQLAlchemy itself is an optional dependency, and a training
command may carry such an address without it.
"""

import re
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*://)"
    r"(?:(?P<user>[^:/@?]*)(?P<password>:.*)?@)?"  # greedy: up to the last @
    r"(?P<place>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
# Query keys whose values are shown: none of them is a secret. Any other value is hidden.
HARMLESS = {
    "application_name", "cache", "charset", "check_same_thread", "connect_timeout", "driver",
    "gssencmode", "mode", "nolock", "port", "sslmode", "target_session_attrs", "timeout", "uri",
}  # fmt: skip
PIECE = 4  # characters of a part of a password that is replaced in a message, too


def hide_secrets(text: str) -> str:
    """A command's argument or an address: from `scheme://` on without secrets.

    The password is `***`, of http and https the user too, which may be a token; so is the value of
    every query key outside `HARMLESS`: `?sslpassword=***`. Text without an address is unchanged.
    """
    found = URL.search(text)
    return text if found is None else text[: found.start()] + _shown(found)


def _shown(found: re.Match[str]) -> str:
    scheme, user, password, place, query = found.groups()
    if user is not None:
        user = HIDDEN if scheme.lower().startswith("http") else user
        place = f"{user}{f':{HIDDEN}' if password else ''}@{place}"
    hidden = "" if query is None else f"?{'&'.join(map(_pair, re.split('[&;]', query)))}"
    return f"{scheme}{place}{hidden}"


def _pair(pair: str) -> str:
    key, equals, _ = pair.partition("=")
    if not equals:
        return HIDDEN if key else ""
    return pair if unquote(key).lower() in HARMLESS else f"{key}={HIDDEN}"


def without_secrets(message: str, url: str) -> str:
    """A message of a driver, which may quote the URL or a secret of it in any of its spellings."""
    message = message.replace(url, hide_secrets(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message


def _secrets(url: str) -> set[str]:
    """The password, every hidden value of the query, and the values inside such a value (`PWD=x`),
    as they are typed and decoded.
    """
    found = URL.search(url)
    if found is None:
        return set()
    raw = [(found["password"] or "")[1:]]
    if found["scheme"].lower().startswith("http"):
        raw.append(found["user"] or "")
    # A driver that parses the address in another way may quote a part of the password.
    spellings = " ".join((raw[0], unquote(raw[0]), unquote(unquote(raw[0]))))
    pieces = re.split(r"\W+", spellings) + re.split("[^A-Za-z0-9]+", spellings)
    raw += [piece for piece in pieces if len(piece) >= PIECE]
    for pair in re.split("[&;]", found["query"] or ""):
        key, equals, value = pair.partition("=")
        if unquote(key).lower() not in HARMLESS:
            secret = value if equals else key
            inner = re.split(r"[;\s]", unquote_plus(secret))
            raw += [secret, *(each.partition("=")[2] for each in inner)]
    return {form for each in raw for form in (each, unquote(each), unquote_plus(each)) if form}
