"""Plugins in tests: the example of the docs, and dictionaries that are as before after a test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgan.config import plugins

DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"


def example(path: Path) -> Path:
    """Write the plugin of docs/plugins.md."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    path.write_text(code)
    return path


@pytest.fixture
def dictionaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins that a test loads in this process."""
    before = {kind: dict(plugins._dictionary(kind)) for kind in plugins.PARTS}
    monkeypatch.setattr(plugins, "_loaded", {})
    yield
    plugins._restore(before)
