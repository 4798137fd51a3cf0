"""The shape of the code: folders import only downward, and each dependency has one door."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "distgan"

# From the top down: a folder imports only from lines below its own.
FOLDERS = (
    ("cli",),
    ("tools",),
    ("training",),
    ("evaluation",),
    ("tracking", "inference"),
    ("config",),
    ("metrics",),
    ("data", "models", "losses", "transforms", "distributed"),
    ("storage", "rng"),
)
FLAT = {"__init__", "__main__", "api", "condition_spec", "errors", "image_spec", "version"}
LEVELS = {folder: -level for level, line in enumerate(FOLDERS) for folder in line}
DOORS = {
    "accelerate": {"distributed.process_group", "distributed.launch"},
    "wandb": {"tracking.wandb_logger"},
    "omegaconf": {"config.load"},
    "webdataset": {"data.shard_urls"},
    "safetensors": {"storage.checkpoint"},
    "jinja2": {"tools.report.render"},
    "onnxruntime": {"inference.export"},
    "av": {"inference.video"},
    "pyarrow": {"data.pack_parquet"},
    "tifffile": {"data.array_image"},
}
TORCH_FREE = {
    "api",
    "cli.arguments",
    "cli.data",
    "cli.generator",
    "cli.main",
    "cli.process",
    "cli.tools",
    "cli.training",
    "config.model_schema",
    "config.schema",
    "config.suggestions",
    "config.load",
    "config.docs",
    "config.fields",
    "config.permissions",
    "config.records",
    "config.units",
    "config.yaml_text",
    "config.decode_options",
    "storage.array_file",
    "storage.urls",
    "data.archives",
    "data.array_image",
    "data.channels",
    "data.condition_table",
    "data.dataset_card",
    "data.dataset",
    "data.decode",
    "data.encode",
    "data.find_labels",
    "data.folder_labels",
    "data.image_format",
    "data.image_structure",
    "data.memory_budget",
    "data.shard_index",
    "data.index_cache",
    "data.labels",
    "data.open_shards",
    "data.pack_arrays",
    "data.pack_entry",
    "data.label_tables",
    "data.pack_inputs",
    "data.pack_parquet",
    "data.pack_shards",
    "data.pack_summary",
    "data.pillow_image",
    "data.resize",
    "data.sample_parts",
    "storage.disk_cache",
    "data.pack",
    "data.shard_writer",
    "data.shuffle",
    "storage.backends",
    "storage.byte_ranges",
    "data.loader",
    "data.synthetic",
    "data.tar",
    "tools.doctor",
    "tools.doctor.finding",
    "tools.doctor.gpus",
    "tools.doctor.host",
    "tools.doctor.network",
    "tools.doctor.packages",
    "tools.doctor.services",
    "errors",
    "condition_spec",
    "image_spec",
    "rng.host_rng",
    "metrics.weights",
    "inference.selection",
    "distributed.launch_env",
    "transforms.degrade_spec",
    "tools.report",
    "tools.report.chart",
    "tools.report.curves",
    "tools.report.history",
    "tools.report.page",
    "tools.report.plot",
    "tools.report.render",
    "tools.report.samples",
    "tools.report.sheet",
    "config.validate",
    "distributed.preemption",
    "tracking.wandb_mode",
    "storage.atomic",
    "storage.formatting",
    "storage.home",
    "storage.printable",
}


@functools.cache  # not where tests are collected, which every worker does
def modules() -> dict[str, ast.Module]:
    """Every module of the package by name, parsed."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


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
    return next((c for c in candidates if c in modules()), None)


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports of this package."""
    named = {name: map(own, imported(tree)) for name, tree in modules().items() if name != "__init__"}
    return {name: set(filter(None, targets)) - {name} for name, targets in named.items()}


def level(name: str) -> int:
    """Where a module stands: below all folders for what they all may import, above for what stands before them."""
    return {
        "condition_spec": -100,
        "errors": -100,
        "image_spec": -100,
        "version": -100,
        "api": 1,
        "__init__": 2,
        "__main__": 2,
    }.get(name, LEVELS.get(name.split(".")[0], 0))


def test_no_module_is_flat_but_these() -> None:
    assert {name for name in modules() if "." not in name} - set(LEVELS) == FLAT
    assert {name.split(".")[0] for name in modules()} - FLAT == set(LEVELS)


def test_imports_lead_downward() -> None:
    upward = [
        f"{name} -> {target}"
        for name, targets in imports().items()
        for target in sorted(targets)
        if name.split(".")[0] != target.split(".")[0] and level(target) >= level(name)
    ]
    assert upward == []


def test_imports_form_no_circle() -> None:
    """So that every file can be read after those it builds on; imports in functions count too."""
    assert len(list(TopologicalSorter(imports()).static_order())) == len(imports())


@pytest.mark.parametrize("dependency", DOORS)
def test_a_dependency_has_one_door(dependency: str) -> None:
    users = {name for name, tree in modules().items() if any(i.split(".")[0] == dependency for i in imported(tree))}
    assert users == DOORS[dependency]


def test_what_runs_before_torch_does_not_import_it() -> None:
    """Nor do the folders that they are in, nor what they import in turn."""
    heavy = ["torch", "accelerate", "wandb", "webdataset"]
    names = ", ".join(f"distgan.{name}" for name in sorted(TORCH_FREE))
    code = f"import sys, {names}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_start_does_not_load_the_compiler() -> None:
    """It takes longer than all other imports together, and few runs compile."""
    code = "import sys, distgan.training.run, distgan.evaluation.evaluate; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stdout + done.stderr


def test_nothing_catches_everything_in_silence() -> None:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "BaseException"):
                assert not all(isinstance(line, ast.Pass | ast.Continue) for line in node.body), name
