"""Plugins: what they add is chosen, checked and explained as built-in parts are; what is wrong with one is reported."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from own_parts import dictionaries, example  # noqa: F401 (a fixture)

from distgan.cli.main import main
from distgan.config import choices, plugins
from distgan.config.docs import help_keys
from distgan.config.fields import leaves
from distgan.config.load import load, load_mapping
from distgan.config.schema import Config
from distgan.errors import ConfigError
from distgan.metrics.names import better

LOSS = """
from distgan.losses.adversarial import LOSSES, Loss
LOSSES[{name!r}] = Loss(lambda real, fake: fake.mean(), lambda fake, real: fake.mean())
"""
pytestmark = pytest.mark.usefixtures("dictionaries")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A config that uses the example of the docs."""
    example(tmp_path / "my_parts.py")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "plugins: [my_parts.py]\nmodel: {family: mlp, G: {width: 9}}\nloss: {options: {margin: 2}, name: margin}\n"
        "data: {shards: /data/faces, resolution: 32, transforms: [dim]}\neval: {metrics: [spread]}\n"
    )
    return path


def test_names_of_built_in_parts_are_those_of_the_dictionaries() -> None:
    for kind, names in plugins.NAMED.items():
        assert list(names) == list(plugins._dictionary(kind)), kind
    for kind, of in (("family", "families"), ("metric", "metrics"), ("degradation", "degradations")):
        assert list(choices.CHOICES[of]) == list(plugins._dictionary(kind))


def test_every_choice_is_of_something_that_there_is() -> None:
    for name, field in leaves(Config):
        if field.metadata["choices"]:
            assert isinstance(list(choices.names(field.metadata["choices"])), list), name


def test_parts_of_a_plugin_are_chosen_with_their_own_settings(mine: Path) -> None:
    config = load(str(mine), ["loss.options.margin=3"])
    assert config.plugins == [str(mine.parent / "my_parts.py")]
    assert config.model.G == {"width": 9}
    assert config.model.D == {"width": 64}
    assert config.loss.options == {"margin": 3.0}
    assert config.loss.r1 == [0.0]  # a penalty is a default of the default loss alone
    assert [line.split()[:3] for line in help_keys("loss.options.margin")] == [["loss.options.margin", "number", "0.5"]]
    assert "mlp" in help_keys("model.family")[0]
    assert better("spread_toy_100") is max


def test_mistakes_are_reported_as_those_of_built_in_parts(mine: Path) -> None:
    wrong = ["loss.options.margn=1", "model.G.widht=3", "data.transforms=[dimm]"]
    with pytest.raises(ConfigError) as error:
        load(str(mine), wrong)
    assert "loss.options.margn: Key 'margn' not in 'Margin'. Did you mean: 'margin'?" in str(error.value)
    assert "Did you mean: 'width'?" in str(error.value)
    with pytest.raises(ConfigError, match=r"data.transforms\[0\]=dimm: .* there are dim"):
        load(str(mine), wrong[2:])
    with pytest.raises(ConfigError, match=r"loss.options.margin=-1.0: must be at least 0"):
        load(str(mine), ["loss.options.margin=-1"])
    with pytest.raises(ConfigError, match=r"loss.name='marginn': choose one of .* Did you mean margin\?"):
        load(str(mine), ["loss.name=marginn"])
    with pytest.raises(ConfigError, match=r"loss.name=hinge has no settings of its own"):
        load(str(mine), ["loss.name=hinge", "loss.options.margin=1"])


def test_a_layer_that_chooses_another_part_starts_from_its_settings(mine: Path) -> None:
    """In whatever order a file or a command line has them."""
    assert load(str(mine), ["loss.name=hinge"]).loss.options == {}
    config = load(str(mine), ["model.G.base_channels=7", "model.family=dcgan"])
    assert config.model.G["base_channels"] == 7


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\nraise KeyError('x')", "line 2: KeyError: 'x'"),
        ("import sys; sys.exit()", "line 1: SystemExit"),
        ("def f(:", "line 1: SyntaxError"),
        ("import not_there.at_all", "it needs the package 'not_there', which is not installed"),
        ("x = 1", "it adds nothing to any dictionary"),
        (LOSS.format(name="hinge"), "'hinge' is the name of a built-in loss"),
        (LOSS.format(name="a b"), "a name for the kind of part 'loss' is 'a b'"),
        ("from distgan.losses.adversarial import LOSSES; del LOSSES['hinge']", "'hinge' is the name of a built-in"),
        ("from distgan.models import MODELS; MODELS['x'] = MODELS['dcgan']", "nothing of that name to FAMILIES"),
        (
            "from distgan.metrics.registry import METRICS; METRICS['x'] = METRICS['fd']",
            "two metrics call a value 'fd'",
        ),
        (LOSS.format(name="mine") + "1 / 0", "line 4: ZeroDivisionError"),
        ("\0", "null bytes"),
        ("#" * 2**21, "no such file has more than 1,048,576"),
    ],
)
def test_a_bad_plugin_is_an_error_with_its_line_and_leaves_nothing(tmp_path: Path, code: str, told: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    before = {kind: dict(plugins._dictionary(kind)) for kind in plugins.PARTS}
    names = {kind: dict(of) for kind, of in plugins.NAMED.items()}
    with pytest.raises(ConfigError, match=r"^plugins: ") as error:
        load_mapping({"plugins": [str(tmp_path / "bad.py")], "run": {"dir": "x"}})
    assert told in str(error.value)
    assert {kind: plugins._dictionary(kind) for kind in plugins.PARTS} == before
    assert names == plugins.NAMED


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("nope.py", "no such file: name a Python file, or a module"),
        ("no.such.module", "there is no such module"),
        ("json", "it adds nothing"),
        ([3], "there is no such module"),
        ([["a.py"]], "a list of Python files"),
        ({"a": 1}, "a list of Python files"),
    ],
)
def test_a_plugin_that_is_none(tmp_path: Path, named: object, told: str) -> None:
    (tmp_path / "a.yaml").write_text(f"plugins: {json.dumps(named)}\n")
    with pytest.raises(ConfigError, match="plugins") as error:
        load(str(tmp_path / "a.yaml"))
    assert told in str(error.value)


def test_two_plugins_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder, name in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.py").write_text(LOSS.format(name=name))
    with pytest.raises(ConfigError, match="has that name too"):
        plugins.load_plugins([(str(tmp_path / folder / "p.py"), None) for folder in "ab"])
    assert "two" not in choices.LOSSES


def test_paths_are_from_the_file_that_has_them_and_bases_count(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    child, other = tmp_path / "runs" / "child.yaml", tmp_path / "other.py"
    child.write_text("base: ../mine.yaml\n")
    other.write_text(LOSS.format(name="other"))
    monkeypatch.chdir(tmp_path)
    config = load(str(child), ["plugins=[other.py]", "loss.name=other", "loss.r1=1"])
    assert config.plugins == [str(tmp_path / "my_parts.py"), str(other)]


def test_modules_packages_and_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_parts"
    package.mkdir()
    (package / "__init__.py").write_text("from some_parts import more")
    (package / "more.py").write_text(LOSS.format(name="from_package"))
    (tmp_path / "one_part.py").write_text(LOSS.format(name="from_module"))
    about = tmp_path / "one_part-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: one_part\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[distgan.plugins]\nshort = one_part\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load_plugins([("some_parts", None), ("short", None)]) == ["some_parts", "one_part"]
    of_package, of_module = plugins.loaded(["some_parts", "one_part"])
    assert [name for name, _ in of_package.files] == ["some_parts/__init__.py", "some_parts/more.py"]
    assert of_module.files == (("one_part.py", (tmp_path / "one_part.py").read_bytes()),)
    assert {"from_package", "from_module"} <= choices.LOSSES.keys()


def test_what_differs_between_plugins_is_named() -> None:
    before, now = {"a.py": "1" * 64, "b.py": "2" * 64, "same.py": "3" * 64}, {"a.py": "4" * 64, "same.py": "3" * 64}
    assert plugins.differences(before, now) == [
        "the plugin b.py was not loaded",
        f"the plugin a.py is another one: sha256 {'1' * 12} before, {'4' * 12} now",
    ]
    assert plugins.differences(now, before)[0] == "the plugin b.py is new"


def test_a_name_that_a_checkpoint_gives_is_quoted_where_it_would_be_pasted() -> None:
    assert plugins.how_to_load(["a.py; rm -r x", "../b.py"], None).endswith(
        "add --plugin 'a.py; rm -r x' --plugin ../b.py"
    )
    assert plugins.how_to_load([], None) == ""


def test_a_run_folder_starts_no_plugin(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture) -> None:
    """Only what the command line names runs; what is merely shown needs none."""
    run = tmp_path / "run"
    (run / "plugins").mkdir(parents=True)
    (run / "plugins" / "my_parts.py").write_text("raise SystemExit('ran')")
    (run / "environment.json").write_text("{}")
    (run / "config.yaml").write_text(mine.read_text())
    for path in (run, run / "config.yaml"):
        with pytest.raises(ConfigError, match=r"runs only if you name it: add --plugin .*run/plugins/my_parts.py"):
            load(str(path))
    read = load(str(run / "config.yaml"), is_saved=True)
    assert (read.loss.name, read.model.G) == ("margin", {"width": 9})
    assert main(["config", "--diff", str(run), str(run)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert load(str(run), more_plugins=[str(mine.parent / "my_parts.py")]).model.family == "mlp"


def test_without_plugins_nothing_of_them_is_imported() -> None:
    code = (
        "import sys; from distgan.config.load import load; load('configs/dcgan64.yaml', ['data.shards=x']); "
        "print([m for m in ('torch', 'distgan.models') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout == "[]\n", done.stderr
    assert all(hasattr(import_module(module), name) for module, name in plugins.PARTS.values())
