"""Addresses of shards: which are files of this machine, and what of one may be shown."""

import re
from urllib.parse import urlsplit, urlunsplit


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    return url.removeprefix("file://")


def public(url: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    if is_local(url):
        return local_path(url)
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@")[-1], parts.path, "", ""))


def public_text(text: str) -> str:
    """A text, such as a word of a command line, with its addresses made public."""
    address = r"\b((?!file:)\w+://)(?:[^/\s,]*@)?((?:(?!::)[^\s?,\]'\"])*)(?:\?(?:(?!::)[^\s,\]'\"])*)?"
    return re.sub(address, r"\1\2", text)
