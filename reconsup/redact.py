"""What a secret looks like, and what is shown in its place. Pure.

Three kinds of secret pass through this program: the password in DATABASE_URL, the API key in the path, the query
or the user part of an RPC URL, and `password=…` in what a driver says about a connection. Whatever is shown or
logged goes through here. It hides too much rather than too little: of an RPC URL only scheme, host and port are
left, of a database's URL also the role and the database.
"""

import re
from functools import lru_cache

HIDDEN = "***"

# A URL goes on to the next white space: a quote or a bracket may be part of a password.
_URL = re.compile(r"(?i)\b(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>\S*)")
_NAME = r"password|passwd|pwd|secret|api[_-]?key|authorization"
_NAMED = re.compile(
    rf"(?i)\b(?P<name>{_NAME})(?P<is>[\"']?\s*[=:]\s*)"
    r"(?:'[^']*'|\"[^\"]*\"|(?:basic |bearer )?[^\s,;&]+)"
)
_KEEPS_USER_AND_PATH = ("postgres", "postgresql")


def redact_url(url: str) -> str:
    """`url` as it may be shown. What is not a URL at all is hidden wholly."""
    return text(url) if _URL.fullmatch(url) else HIDDEN


def text(value: str) -> str:
    """`value` with every URL and every `password=…` in it made harmless."""
    if "://" in value:
        value = _URL.sub(_harmless, value)
    if "=" in value or ":" in value:
        value = _NAMED.sub(rf"\g<name>\g<is>{HIDDEN}", value)
    return value


@lru_cache(maxsize=1024)  # the fields of log lines: few names, again and again
def names_a_secret(name: str) -> bool:
    """Whether what stands under `name` is a secret by its name alone."""
    return re.search(_NAME, name, re.IGNORECASE) is not None


def _harmless(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    is_database = scheme.lower().partition("+")[0] in _KEEPS_USER_AND_PATH
    # Up to the LAST @: an unescaped one belongs to the password, whatever a parser makes of it.
    userinfo, at, rest = rest.rpartition("@")
    shown = f"{scheme}://"
    if at:
        user = userinfo.partition(":")[0] if is_database else HIDDEN
        shown += f"{_word(user)}:{HIDDEN}@" if ":" in userinfo and is_database else f"{_word(user)}@"
    authority = re.match(r"[^/?#]*", rest)
    host = authority.group() if authority else ""
    shown, rest = shown + host, rest[len(host) :]
    if is_database:
        path, mark, query = rest.partition("?")
        return shown + path + (f"?{HIDDEN}" if mark and query else "")
    return shown + (f"/{HIDDEN}" if rest.strip("/") else rest)


def _word(user: str) -> str:
    """A role's name, if it is one: the beginning of a torn password is not."""
    return user if re.fullmatch(r"[\w.%*-]{1,63}", user) else HIDDEN
