"""Print URLs without passwords, tokens or secret query parameters.

URLs are parsed as SQLAlchemy does (`sqlalchemy.engine.make_url`), which allows spaces, `/` and `?`
in a password; a test compares both parsers. SQLAlchemy itself is an optional dependency, and the
secrets in a training command must be hidden even if it is not installed.
"""

import re
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
PAIR = re.compile("[^&;]+")  # one key=value of a query
PARAMETER = re.compile(r"(?P<key>;[^=;/#]*)=[^;/#]*")  # a parameter of a path: ;jsessionid=…
# A setting after the address of a database: `;password=…`, ` password=…`.
SETTING = re.compile(r"(?P<key>[;\s][^=;\s/]*)=[^;\s]*")
# Schemes in which the user's name is no secret; in others, such as http and s3, it may be a token.
DATABASES = ("postgres", "mysql", "mariadb", "mssql", "oracle", "sqlite")
PATH = ("/", "./", "../", "~")  # beginnings of a path
REVERSED_SCHEME = re.compile(r"[\w+.-]*")
FIRST_OF_SCHEME = re.compile("[A-Za-z]")
URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*://)"
    r"(?:(?P<user>[^:/@?]*)(?P<password>:.*)?@)?"  # greedy: up to the last @
    r"(?P<address>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
# Query keys whose values are never secret and therefore shown. The values of other keys are hidden.
HARMLESS = {
    "application_name", "cache", "charset", "check_same_thread", "connect_timeout", "driver",
    "gssencmode", "mode", "nolock", "port", "sslmode", "target_session_attrs", "timeout", "uri",
}  # fmt: skip
MOST_URLS = 16  # in one text
PIECE = 4  # characters; shorter parts of a password are not searched in messages


def hide_secrets(text: str) -> str:
    """Replace the secrets in a URL, or in an argument that contains a URL, by `***`.

    Secrets are the password and the value of every query key that is not in `HARMLESS`:
    `?sslpassword=***`. The user name, which may be a token, is hidden except in the URLs of
    databases, in which settings after the address are hidden. In http and https URLs the fragment
    and the parameters of the path are hidden too. Further URLs are treated alike. Other text is
    unchanged; in the URL of a SQLite file this includes text after a `?` without `=`, which is a
    part of the path. A text with more than MOST_URLS URLs is hidden as a whole.
    """
    if text.count("://") > MOST_URLS:
        return HIDDEN
    match = None if text.startswith(PATH) else _first_url(text)
    return text if match is None else text[: match.start()] + _redacted(match)


def _first_url(text: str) -> re.Match[str] | None:
    """Return the match of the first URL in a text and of all that follows it, in linear time.

    `URL.search` would need quadratic time for a long word without `://`.
    """
    for separator in re.finditer("://", text):
        end = separator.start()
        word = REVERSED_SCHEME.match(text[:end][::-1])
        assert word is not None  # it may be empty
        if first := FIRST_OF_SCHEME.search(text, end - word.end(), end):
            return URL.match(text, first.start())
    return None


def _redacted(match: re.Match[str]) -> str:
    scheme, user, password, address, query = match.groups()
    is_web = "http" in scheme.lower()  # also git+https
    fragment = ""
    if is_web:
        address = PARAMETER.sub(rf"\g<key>={HIDDEN}", address)
        address, in_address, _ = address.partition("#")
        query, in_query, _ = (None, "", "") if query is None else query.partition("#")
        fragment = f"#{HIDDEN}" if in_address or in_query else ""
        query = None if in_address else query  # after a # it is a part of the fragment
    elif not _is_sqlite_file(scheme):
        address = SETTING.sub(rf"\g<key>={HIDDEN}", address)
    address = hide_secrets(address)  # another URL may follow
    if user is not None:
        user = user if scheme.lower().startswith(DATABASES) else HIDDEN
        address = f"{user}{f':{HIDDEN}' if password else ''}@{address}"
    hidden = (
        "" if query is None else "?" + PAIR.sub(lambda pair: _redacted_pair(pair[0], scheme), query)
    )
    return f"{scheme}{address}{hidden}{fragment}"


def _redacted_pair(pair: str, scheme: str) -> str:
    key, equals, _ = pair.partition("=")
    if not equals:
        return pair if _is_sqlite_file(scheme) else HIDDEN
    return pair if unquote(key).lower() in HARMLESS else f"{key}={HIDDEN}"


def _is_sqlite_file(scheme: str) -> bool:
    """Whether a URL is that of a SQLite file.

    In its query, text without `=` is a part of the file's path.
    """
    return scheme.lower().startswith("sqlite")


def without_secrets(message: str, url: str) -> str:
    """Hide the secrets of a URL in the message of a database driver.

    The message may quote the URL, or a secret as typed or URL-decoded.
    """
    message = message.replace(url, hide_secrets(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message


def _secrets(url: str) -> set[str]:
    """Return every secret in a URL, both as typed and URL-decoded.

    Secrets are the password, its parts, the hidden query values, and values nested in these: x in
    `PWD=x`. Except in URLs of databases the user name is a secret too.
    """
    match = _first_url(url)
    if match is None:
        return set()
    raw = [(match["password"] or "")[1:]]
    if not match["scheme"].lower().startswith(DATABASES):
        raw.append(match["user"] or "")
    # A driver that parses the URL in another way may quote only a part of the password.
    spellings = " ".join((raw[0], unquote(raw[0]), unquote(unquote(raw[0]))))
    pieces = re.split(r"\W+", spellings) + re.split("[^A-Za-z0-9]+", spellings)
    raw += [piece for piece in pieces if len(piece) >= PIECE]
    for pair in re.split("[&;]", match["query"] or ""):
        key, equals, value = pair.partition("=")
        is_path = not equals and _is_sqlite_file(match["scheme"])
        if not is_path and unquote(key).lower() not in HARMLESS:
            secret = value if equals else key
            inner = re.split(r"[;\s]", unquote_plus(secret))
            raw += [secret, *(each.partition("=")[2] for each in inner)]
    return {form for each in raw for form in (each, unquote(each), unquote_plus(each)) if form}
