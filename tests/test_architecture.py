"""The shape of the code: imports form no circle, parts know few others, and each dependency has one door."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distgan"

# What a part may import of this package, beside itself.
PARTS = {
    "models": {"draw"},
    "data": {"errors", "keyed", "stop", "checkpoint", "pick"},
    "metrics": {"errors", "keyed", "data"},
    "doctor": {"errors", "ranks", "data", "checkpoint", "wandbmode"},
    "report": {"errors", "config", "configfile", "data"},
    "losses": set(),
    "penalties": set(),
    "schedules": set(),
    "ema": set(),
    "balance": set(),
    "draw": {"keyed"},
    "augment": {"draw"},
    "recipe": set(),
    "degrade": {"draw", "recipe"},
    "step": {"augment", "compiling", "draw", "judge", "keyed", "losses", "meter", "models", "penalties", "world"}
    | {"degrade", "recipe", "sample"},
}
# Who may import what all could be tempted to: config objects stop here, and below nobody knows of a run.
KNOWN_BY = {
    "config": {"configfile", "confighelp", "build", "controls", "state", "gallery", "tracker", "trainer", "run"}
    | {"rules", "check", "generator", "realism", "report", "cli", "bench", "api", "evaluation", "dashboard"},
    "trainer": {"run", "bench"},
    "run": {"cli", "bench", "api"},
    "cli": {"__main__"},
}
DOORS = {
    "accelerate": {"world", "launch"},
    "wandb": {"dashboard"},
    "omegaconf": {"configfile"},
    "webdataset": {"data.shards"},
    "safetensors": {"checkpoint"},
    "matplotlib": {"report.plot"},
    "onnxruntime": {"export"},
    "av": {"walk"},
}
TORCH_FREE = (
    {"errors", "keyed", "stop", "ranks", "recipe", "config", "rules", "configfile", "confighelp", "cli", "api"}
    | {"arguments", "metrics.weights", "wandbmode"}
    | {"doctor", "pick", "report"}
    | {f"report.{name}" for name in ("history", "curves", "markup", "svg", "plot", "page")}
    | {f"doctor.{name}" for name in ("finding", "packages", "gpus", "network", "host", "services")}
    | {
        f"data.{name}"
        for name in ("tar", "address", "source", "image", "plan", "index", "dataset", "stream", "listing", "labels")
    }
    | {f"data.{name}" for name in ("pack", "nodecache", "classes", "synthetic", "archives", "card")}
)


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return {name: tree for name, tree in found.items() if name not in ("__init__", "data")}


MODULES = modules()


def imported(tree: ast.Module, everywhere: bool = True) -> Iterator[str]:
    """Dotted names that a module imports, in functions too where `everywhere`."""
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of this package that an imported name means."""
    if not name.startswith("distgan."):
        return None
    parts = name.split(".")[1:]
    candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((c for c in candidates if c in MODULES), None)


IMPORTS = {name: set(filter(None, map(own, imported(tree)))) for name, tree in MODULES.items()}


def test_imports_form_no_circle() -> None:
    """So that every file can be read after those it builds on; imports in functions count too."""
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(MODULES)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_builds_on_few_others(part: str) -> None:
    inside = {name for name in MODULES if name.split(".")[0] == part}
    outside = {target.split(".")[0] for name in inside for target in IMPORTS[name]} - {part}
    assert inside
    assert outside <= PARTS[part]


@pytest.mark.parametrize("name", KNOWN_BY)
def test_few_know_of_the_whole(name: str) -> None:
    assert {user.split(".")[0] for user, targets in IMPORTS.items() if name in targets} <= KNOWN_BY[name]


@pytest.mark.parametrize("dependency", DOORS)
def test_a_dependency_has_one_door(dependency: str) -> None:
    users = {name for name, tree in MODULES.items() if any(i.split(".")[0] == dependency for i in imported(tree))}
    assert users == DOORS[dependency]


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_what_runs_before_torch_does_not_import_it(name: str) -> None:
    assert not any(
        i.split(".")[0] in ("torch", "accelerate", "wandb", "webdataset") for i in imported(MODULES[name], False)
    )


def test_nothing_catches_everything_in_silence() -> None:
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "BaseException"):
                assert not all(isinstance(line, ast.Pass | ast.Continue) for line in node.body), name
