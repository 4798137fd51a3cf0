"""HTML and SVG whose text is escaped by construction."""

from html import escape

VOID = ("br", "img", "input", "meta")


class Markup(str):
    """Text that is markup already. All other text is escaped by `tag`."""

    __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element. Attributes: `class_` is written class, `view_box` viewBox, `data_x` data-x; None is left out."""
    written = "".join(
        f' {_attribute(key)}="{escape(str(value))}"' if value is not True else f" {_attribute(key)}"
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """Pieces one after another: markup as it is, everything else as text."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(str(piece)) for piece in content))


def _attribute(key: str) -> str:
    return "viewBox" if key == "view_box" else key.rstrip("_").replace("_", "-")
