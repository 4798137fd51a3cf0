"""Addresses: which are files of this machine, and what of one may be shown or written down."""

import re
from urllib.parse import quote, unquote

HIDDEN_COMMAND = "pipe:[not shown]"  # in place of a command, which may hold a token anywhere
_SCHEME = re.compile(r"(?<![\w+.\-/?#;&%@])(?!file://)[\w+.-]*://")  # not within an address, whose secret may hold ://
_COMMAND = re.compile(r"(?:^|(?<=[\s=\[,'\"{:]))pipe:")
# What may begin another address behind the first one. Any other name may be part of a user, a password or a token.
_KNOWN = (
    r"(?:file|local|memory|https?|s?ftp|ssh|s3a?|gc?s|az|abfss?|adl|hf|oss|(?:web)?hdfs|github|zip|tar"
    r"|(?:simple|file|block)cache)"
)
_LINKED = re.compile(rf"::(?={_KNOWN}(?:://|::))")  # joins addresses to a chain
_KNOWN_SCHEME = re.compile(rf"{_KNOWN}://")
_SECRET_FROM = re.compile(r"[?#;]")
_SHORTEST = 3  # shorter parts of a secret are replaced only together with the rest


def is_local(url: str) -> bool:
    """Return whether an address is a file of this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """Return the path of a local address."""
    return url.removeprefix("file://")


def public(text: str) -> str:
    """Return an address without what may be secret: user, password, query, fragment; of `pipe:`, the command.

    `text` may have words around its addresses, such as `data.shards=[https://...]`. An address may hold any character,
    so what begins a secret hides the rest of the text, up to the next address of a chain (`::`). A local path is shown
    without file://, and is otherwise as it was.
    """
    if command := _COMMAND.search(text):
        return public(text[: command.start()]) + HIDDEN_COMMAND
    if not _SCHEME.search(text):
        return local_path(text)
    return "::".join(_public_link(link) for link in _LINKED.split(text))


def public_text(text: str, *urls: str) -> str:
    """Return a message without the secrets of these addresses, whole or in parts, and of others that it shows."""
    for url in urls:
        text = text.replace(url, public(url)).replace(repr(url)[1:-1], public(url))
        for secret in sorted(_secrets(url), key=len, reverse=True):
            text = text.replace(secret, "***")
    if re.search(r"pipe:\S", text):
        return public(text)
    return re.sub(r"\S*://\S*", lambda word: public(word[0]), text)


def _public_link(text: str) -> str:
    """Return a text without its addresses' secrets; its addresses form no chain."""
    schemes = _schemes(text)
    shown = text[: schemes[0].start()] if schemes else text
    for scheme, end in zip(schemes, _ends(schemes, text)):
        _, place, hidden = _cut(text[scheme.end() : end])
        shown += scheme[0] + place
        if hidden:
            break
    return shown


def _schemes(text: str) -> list[re.Match[str]]:
    """Return the schemes that begin an address: not in a query, nor in a user and password up to an @ further on."""
    schemes: list[re.Match[str]] = []
    for scheme in _SCHEME.finditer(text):
        rest = text[schemes[-1].end() if schemes else 0 : scheme.start()]
        host, slash, _ = rest.rpartition("@")[2].partition("/")
        is_place = slash and not re.search(r":(?!\d*$)", host)
        is_clear = (is_place or "@" not in text[scheme.start() :]) and not _SECRET_FROM.search(rest)
        if not schemes or (is_clear and _KNOWN_SCHEME.fullmatch(scheme[0])):
            schemes.append(scheme)
    return schemes


def _ends(schemes: list[re.Match[str]], text: str) -> list[int]:
    """Return where the address of each scheme ends: where the next one begins, or the text ends."""
    return [*(scheme.start() for scheme in schemes[1:]), len(text)]


def _cut(rest: str) -> tuple[str, str, str]:
    """Split what follows a scheme into user and password, the place to show, and what comes after it.

    A password may hold any character: where it is not clear that there is none, nothing is shown.
    """
    until = _SECRET_FROM.search(rest)
    host, _, _ = rest.partition("/")
    before, at, _ = rest.rpartition("@")
    if until and until.start() < len(before) and (until.start() < len(host) or ":" in before):
        return rest, "", ""
    place, hidden = (rest[: until.start()], rest[until.start() :]) if until else (rest, "")
    user, at, _ = (place if at and ":" in before else host).rpartition("@")
    return user, place[len(user) + 1 :] if at else place, hidden


def _secrets(url: str) -> set[str]:
    """Return what `public` leaves out of an address, whole and in the parts that a library may show."""
    secrets: set[str] = set()
    for link in _LINKED.split(url):
        schemes = _schemes(link)
        for scheme, end in zip(schemes, _ends(schemes, link)):
            user, _, hidden = _cut(link[scheme.end() : end])
            secrets |= {user, user.partition(":")[2], hidden[1:], *re.split(r"[?#;&=]", hidden)}
            # What may be a user may be a query instead, and the other way round: both fall into the parts of both.
            secrets |= {piece for part in (user, hidden) for piece in re.split(r"[:/@?#;&=]", part)}
    secrets |= {spelled for part in secrets for spelled in (unquote(part), quote(part), repr(part)[1:-1])}
    return {part for part in secrets if len(part) >= _SHORTEST}
