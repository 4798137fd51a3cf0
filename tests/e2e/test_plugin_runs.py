"""The example of docs/plugins.md in real runs: two ranks, killed and resumed, and every command on the result."""

import json
import shutil
from pathlib import Path

import pytest
from own_parts import dictionaries, example  # noqa: F401 (a fixture)
from processes import output, run_ranks
from runs import lines, require_resumed, train, write_config

from distgan import load_generator
from distgan.cli.main import main
from distgan.config import plugins

OWN = """
plugins: [my_parts.py]
"""
TOY = ["eval.extractor=toy", "eval.num_images=60"]


@pytest.fixture
def mine(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    example(tmp_path / "my_parts.py")
    path = write_config(tmp_path / "mine.yaml", digits, more=OWN)
    text = path.read_text().replace("{base_channels: 8, max_channels: 16}", "{width: 24}")
    text = text.replace("model:\n", "model:\n  family: mlp\n").replace("{r1: 1,", "{name: margin, r1: 1,")
    path.write_text(text.replace("resolution: 16}", "resolution: 16, transforms: [dim]}"))
    return path


@pytest.mark.multi
@pytest.mark.usefixtures("dictionaries")
def test_the_example_trains_and_all_commands_take_its_run(
    tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(mine), "train.images=480", "eval.every=240", "eval.metrics=[fd,spread]", *TOY, "data.audit=true"]
    run, _ = require_resumed(tmp_path, arguments, lambda broken: lines(broken / "metrics.jsonl") >= 2)
    plugin = run / "plugins" / "my_parts.py"
    kept = json.loads((run / "plugins" / "plugins.json").read_text())
    assert plugin.read_text() == (tmp_path / "my_parts.py").read_text()
    assert kept["plugins"]["my_parts.py"]["adds"][0] == "loss margin"
    assert kept["directions"] == {"spread": "higher"}

    capsys.readouterr()
    commands = {
        "generate": ["generate", str(run), "--num", "3", "--out", str(tmp_path / "made")],
        "evaluate": ["evaluate", str(run), *TOY, "--seeds", "1"],
        "export": ["export", str(run), str(tmp_path / "exported")],
        "train": ["train", str(run), "train.images=600"],
    }
    for command in commands.values():  # no checkpoint starts code
        assert main(command) == 2
        assert f"whose code runs only if you name it: add --plugin {plugin}" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0  # which shows what there is
    page = (run / "report.html").read_text()
    assert "my_parts.py: loss margin, family mlp" in page
    for command in commands.values():
        assert main([*command, "--plugin", str(plugin)]) == 0, command
    told = capsys.readouterr()
    assert "spread_toy_60" in told.out
    assert "another one" not in told.out + told.err
    assert len(list((tmp_path / "made").rglob("*.png"))) == 3
    about = json.loads((tmp_path / "exported" / "config.json").read_text())["origin"]
    assert list(about["plugins"]) == about["config"]["plugins"] == ["my_parts.py"]
    assert load_generator(tmp_path / "exported")(2, seed=1).shape == (2, 3, 16, 16)


def test_a_changed_plugin_is_reported(
    tmp_path: Path,
    mine: Path,
    capsys: pytest.CaptureFixture,
    dictionaries: None,  # noqa: F811
) -> None:
    run, plugin = tmp_path / "run", tmp_path / "my_parts.py"
    before = {kind: dict(plugins._dictionary(kind)) for kind in plugins.PARTS}
    assert train(mine, run, "train.images=120") == 0
    digest = next(iter(plugins._loaded.values())).sha256[:12]
    plugins._loaded.clear()  # as in another process
    plugins._restore(before)
    plugin.write_text(plugin.read_text() + "# changed\n")
    assert train(mine, run, "train.images=240") == 0
    assert (
        f"since the checkpoint, the plugin my_parts.py is another one: sha256 {digest}" in (run / "log.txt").read_text()
    )
    assert (run / "plugins" / "my_parts.py").read_text().endswith("# changed\n")
    assert not (run / "plugins" / digest / "my_parts.py").read_text().endswith("# changed\n")
    shutil.copytree(run, tmp_path / "elsewhere")
    plugins._loaded.clear()
    plugins._restore(before)
    capsys.readouterr()
    old = str(run / "plugins" / digest / "my_parts.py")
    command = ["generate", str(tmp_path / "elsewhere"), "--num", "1", "--out", str(tmp_path / "made")]
    assert main([*command, "--plugin", old]) == 0
    assert "the plugin my_parts.py is another one" in "".join(capsys.readouterr())


@pytest.mark.multi
def test_ranks_with_other_plugins_do_not_start(tmp_path: Path, mine: Path) -> None:
    """Each rank has its own folder with a plugin of the same name."""
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
        text = (tmp_path / "my_parts.py").read_text()
        (tmp_path / f"{rank}" / "my_parts.py").write_text(f"{text}# {rank}\n")
    code = (
        "import os, sys; from distgan.cli.main import main; os.chdir(f'{sys.argv[1]}/{os.environ[\"RANK\"]}'); "
        "sys.exit(main(sys.argv[2:]))"
    )
    arguments = [str(tmp_path), "train", str(mine), f"run.dir={tmp_path / 'run'}"]
    mine.write_text(mine.read_text().replace("plugins: [my_parts.py]", "plugins: []"))
    codes = run_ranks(2, ["-c", code, *arguments, "--plugin", "my_parts.py"], tmp_path / "log", timeout=120)
    assert codes == [5, 5], output(tmp_path / "log", 2)
    assert "has another" in output(tmp_path / "log", 2)
