"""The shape of the code: imports point to lower levels only, and each dependency has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distgan"

LEVELS = [
    {"errors", "keyed", "losses", "penalties", "schedules", "ema", "stop", "data.tar", "data.address", "markup"}
    | {"doctor.finding"},
    {"draw", "balance", "augment"},
    {"metrics", "metrics.resize", "metrics.norm", "metrics.dinov2"},
    {f"metrics.{name}" for name in ("efficientnet", "inception", "moments", "kernel", "neighbours", "probe")},
    {"metrics.frechet", "metrics.inception_score"},
    {"metrics.scores"},
    {"models.tail", "models.spectral"},
    {"models.dcgan", "models.hourglass", "models.r3gan", "models.resnet"},
    {"checkpoint", "ranks", "config", "watch", "models", "sample", "data.source", "data.image", "data.plan", "pick"}
    | {"history", "data.card", "doctor.packages", "doctor.gpus", "doctor.services"},
    {"configfile", "confighelp", "runfolder", "world", "data.index", "curves", "doctor.network"},
    {"data.dataset", "tracker", "meter", "stopwatch", "svg", "plot"},
    {"data.stream", "data.listing", "build", "step", "doctor.host"},
    {"metrics.weights"},
    {"metrics.extractors", "metrics.reference"},
    {"metrics.naming", "imageset"},
    {"evaluate"},
    {"controls"},
    {"state", "gallery", "data.pack", "data.generated", "check", "generator", "audit", "preflight", "report", "doctor"},
    {"trainer", "walk", "export"},
    {"generate"},
    {"run"},
    {"cli"},
    {"__main__"},
]
DOORS = {
    "accelerate": {"world"},
    "wandb": {"tracker"},
    "omegaconf": {"configfile"},
    "webdataset": {"data.dataset"},
    "safetensors": {"checkpoint"},
    "matplotlib": {"plot"},
    "onnxruntime": {"export"},
    "av": {"walk"},
}
TORCH_FREE = (
    {"errors", "keyed", "stop", "ranks", "config", "configfile", "confighelp", "cli", "metrics.weights"}
    | {"history", "curves", "markup", "svg", "plot", "report", "data.card", "doctor", "pick"}
    | {f"doctor.{name}" for name in ("finding", "packages", "gpus", "network", "host", "services")}
    | {
        f"data.{name}"
        for name in ("tar", "address", "source", "image", "plan", "index", "dataset", "stream", "listing", "pack")
    }
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


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def own(name: str) -> str | None:
    """The module of this package that an imported name means."""
    if not name.startswith("distgan."):
        return None
    parts = name.split(".")[1:]
    candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((c for c in candidates if c in MODULES), None)


def test_every_module_has_its_level() -> None:
    assert set(MODULES) == set().union(*LEVELS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_to_lower_levels(name: str) -> None:
    for target in filter(None, map(own, imported(MODULES[name]))):
        assert level(target) < level(name), f"{name} imports {target}"


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
