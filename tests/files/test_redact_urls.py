"""No secret of an address is printed."""

import time
from urllib.parse import quote, quote_plus

import pytest
from sqlalchemy.engine import make_url

from distill.files import redact_urls

SECRET = "Sw0rdf1sh"
ODBC = quote_plus(f"DRIVER={{ODBC}};SERVER=h;UID=u;PWD={SECRET}")
LEAKING = [
    f"postgresql://u:{SECRET}@h/d",
    f"postgresql://u:a/{SECRET}@h/d",
    f"postgresql://u:a {SECRET}@h/d",
    f"postgresql://u:a?b={SECRET}@h/d",
    f"postgresql://u:a@{SECRET}@h/d",
    f"postgresql://u:{SECRET}\nx@h/d",
    f"postgresql://u:%09{SECRET}%0A@h/d",
    f"postgresql://u:%C3%A9{SECRET}%09@h/d",
    f"postgresql://u:%252F{SECRET}%252F@h/d",
    f"postgresql://u@h/d?port=5432;x%20y%3D{SECRET}",
    f"postgresql://u@h/d?password={SECRET}",
    f"postgresql://u@h/d?sslmode=require&sslpassword={SECRET}",
    f"postgresql://u@h/d?sslmode=require;passfile={SECRET}",
    f"postgresql://u@h/d?options=-c%20x%3D{SECRET}",
    f"postgresql://u@h/d?PASSWORD={SECRET}",
    f"postgresql://u@h/d?pass%77ord={SECRET}",
    f"postgresql://u@h/d?{SECRET}",
    f"mssql+pyodbc:///?odbc_connect={ODBC}",
    f"https://{SECRET}@example.org/file",
    f"https://u:{SECRET}@example.org/file?X-Amz-Signature={SECRET}",
    f"sqlite:////what?x/sweep.db&key={SECRET}",
    f"sqlite+pysqlcipher://:{SECRET}@/d.db",
    f"sqlite+pysqlcipher:///d.db?passphrase={SECRET}",
    f"sqlite:///file:d.db?key={SECRET}&uri=true",
    f"sqlite://u:{SECRET}@h/d?x",
    f"--storage=postgresql://u:{SECRET}@h/d",
]


@pytest.mark.parametrize("url", LEAKING)
def test_no_secret_is_shown(url):
    shown = redact_urls.hide_secrets(url)
    assert SECRET not in shown and "***" in shown
    assert shown.startswith(url.partition("://")[0])


@pytest.mark.parametrize("url", LEAKING)
def test_message_of_driver_is_shown_without_secrets(url):
    message = f"cannot connect to {url} (password {SECRET}, {quote(SECRET)})"
    assert SECRET not in redact_urls.without_secrets(message, url)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////tmp/sweep.db",
        "postgresql+psycopg://u@h:5432/d?sslmode=require&connect_timeout=3",
        "--set",
        "loss.kd.temperature=4",
        "runs/a?b@c",
        "sqlite:////runs/what?x/sweep.db",
        "sqlite+pysqlite:///what?x&y/sweep.db&mode=ro",
        "sqlite:///what?x;y/sweep.db",
        "/runs/a://what?x",
        "./a://what?x",
        "~/a://b:c@what?x",
        "a:b@c",
    ],
)
def test_text_without_secrets_is_unchanged(text):
    assert redact_urls.hide_secrets(text) == text


def test_message_keeps_the_path_of_a_file() -> None:
    message = "cannot open what?extra/sweep.db"
    assert redact_urls.without_secrets(message, "sqlite:///what?extra/sweep.db") == message


@pytest.mark.parametrize("user", ["u", "", "a%40b"])
@pytest.mark.parametrize("password", ["p", "p/q", "p q", "p?q", "p:q", "%40p%2F", "p=q&r", None])
@pytest.mark.parametrize("rest", ["h/d", "h:5432/d", "/d", "[::1]:1/d", "h"])
def test_the_grammar_is_sqlalchemys(user, password, rest):
    login = f"{user}@" if password is None else f"{user}:{password}@"
    url = f"postgresql+psycopg://{login}{rest}"
    parsed, found = make_url(url), redact_urls.URL.fullmatch(url)
    assert found is not None
    assert (found["password"] or ":")[1:] == (password or "")
    assert parsed.password is None or parsed.password == redact_urls.unquote(password or "")
    assert redact_urls.hide_secrets(url).partition("@")[2] == rest
    assert make_url(redact_urls.hide_secrets(url)).host == parsed.host


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/x#access_token=s3cret", "https://h/x#***"),
        ("https://h/x?mode=1#access_token=s3cret", "https://h/x?mode=1#***"),
        ("https://h/#a?token=s3cret", "https://h/#***"),
        ("https://h/x;jsessionid=s3cret/y", "https://h/x;jsessionid=***/y"),
        ("git+https://s3cret@h/x.git", "git+https://***@h/x.git"),
        ("sqlite:///a#b;c=d.db", "sqlite:///a#b;c=d.db"),
        ('["https://h/a","https://u:s3cret@h/b"]', '["https://h/a","https://***:***@h/b"]'),
        ("https://h/ postgresql://u:s3cret@h/d", "https://h/ postgresql://u:***@h/d"),
        ("jdbc:postgresql://h/d;password=s3/cret", "jdbc:postgresql://h/d;password=***"),
        ("postgresql://h/d password=s3cret", "postgresql://h/d password=***"),
        ("s3://s3cret@bucket/x", "s3://***@bucket/x"),
        ("hf://s3cret@models/x", "hf://***@models/x"),
        ("ftp://s3cret:@h", "ftp://***:***@h"),
    ],
)
def test_secrets_outside_the_query_are_hidden(url: str, shown: str) -> None:
    assert redact_urls.hide_secrets(url) == shown


@pytest.mark.parametrize("text", ["x" * 200_000, "a1" * 100_000, "1" * 200_000 + "://x"])
def test_time_is_linear_in_the_length(text: str) -> None:
    begun = time.perf_counter()
    assert redact_urls.hide_secrets(text) == text
    assert redact_urls.without_secrets("m", text) == "m"
    assert time.perf_counter() - begun < 1.0


def test_text_of_very_many_urls_is_hidden() -> None:
    assert redact_urls.hide_secrets(f"a://u:{SECRET}@" * 50_000) == "***"


def test_scheme_may_have_other_letters() -> None:
    assert redact_urls.hide_secrets(f"aé://u:{SECRET}@h/d") == "aé://***:***@h/d"


@pytest.mark.parametrize("before", ["", "1", "-", "é", "x 1.", "://", "1:// "])
def test_url_behind_other_characters_is_found(before: str) -> None:
    shown = redact_urls.hide_secrets(f"{before}https://u:{SECRET}@h/d")
    assert shown == f"{before}https://***:***@h/d"
