"""Hostile names, generated once; every writer of a name is tested with them."""

import itertools

PAYLOAD = 'open("PWNED","w").write("x")'  # a name that runs leaves this file behind

_PYTHON = [
    f'""";{PAYLOAD};"""', f"''';{PAYLOAD};'''", f'"\n{PAYLOAD}\n"', f'\\""";{PAYLOAD};#',
    "\\N", "\\u12", "\\x",
    'tri"""ple', 'quote"', 'quotes"""', "back\\", "__import__('os')", f"{{{PAYLOAD}}}",
    "%s%n", "{0.__class__}",
]  # fmt: skip
_TERMINAL = [
    "[bold]x", "[/red]", "[link=https://example.org]x[/link]", ":smiley:", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\nb", "a\tb", "\b\b\bgone", "\x00nul", "\x7f",
    "\u202egnp.exe", "\u2066x\u2069", "\u200bzero", "\ufeffmark", "a\u2028b", "a\x85b",
]  # fmt: skip
_MARKUP = [
    "<script>PWNED()</script>", '"><img src=x onerror=PWNED()>',
    "</title></style><svg onload=PWNED()>", "&lt;b&gt;",
    "{{ 7*7 }}", "{% raw %}", "${PWNED}", "<!-- x", "]]>",
]  # fmt: skip
_DOCUMENT = [
    "\\input{/etc/passwd}", "$\\frac$", "a & b \\\\", "100 %",
    "^_~#", "\\end{tabular}\\write18{PWNED}",
    "**bold**", "[a](javascript:PWNED)", "![i](https://example.org/x.png)", "`tick`",
    "```", "a | b", "# head",
    "www.example.org", "https://example.org", "@someone", "---\nlicense: other",
    "- item", "key: value",
]  # fmt: skip
_TABLE = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", 'a,"b', "a;b", "\t=1"]
_BYTES = ["\udcff\udcfe", "caf\udce9", "\ud800"]  # as Python reads names that are not UTF-8
_HARMLESS = ["airplane", "café", "naïve 你好", "a b", "x" * 300, "👩\u200d🚀", ".", "0"]

NAMES: list[str] = list(
    dict.fromkeys(
        [*_PYTHON, *_TERMINAL, *_MARKUP, *_DOCUMENT, *_TABLE, *_BYTES, *_HARMLESS]
        # Every two kinds in one name: an escape of one must not undo that of the other.
        + ["".join(pair) for pair in itertools.product(_PYTHON, _TERMINAL[::3] + _MARKUP[::3])]
        + ["".join(pair) for pair in itertools.product(_DOCUMENT, _BYTES[:2] + _TABLE[::3])]
    )
)
# Those that a folder may have, for tests that lay class folders out.
FOLDERS = [
    name
    for name in NAMES
    if not {"/", "\0", "\ud800"} & set(name)
    and len(name.encode("utf-8", "surrogateescape")) < 200
    and not name.startswith(".")
]
