"""Fill in templates: the only door to Jinja2, with every value escaped."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: object) -> str:
    """Return a template of `templates/` with values filled in, as text: no value becomes markup."""
    return _environment().get_template(template).render(values)


def page_parts() -> dict[str, str]:
    """Return the style and the script of a page, and the policy that lets nothing else apply or run."""
    style, script = ((TEMPLATES / f"page.{kind}").read_text() for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return {"policy": policy, "style": style, "script": script}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
