"""The example of docs/plugins.md in real runs: two ranks, killed and resumed, and every command on the result."""

import json
import shutil
from pathlib import Path

import pytest
from own_parts import dictionaries, example  # noqa: F401 (a fixture)
from processes import output, run_ranks
from runs import lines, metrics, require_resumed, train, weights, write_config

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


OTHERS = """
from dataclasses import dataclass

import torch

from distgan.config.fields import key
from distgan.metrics.extractors import EXTRACTORS, Kind, Toy
from distgan.tracking.alerts import ALERT_RULES, AlertRule
from distgan.tracking.trackers import TRACKERS
from distgan.training.optimizers import OPTIMIZERS, OptimizerKind
from distgan.training.schedulers import SCHEDULES
from distgan.transforms import degrade, degrade_spec
from distgan.transforms.augment import AUGMENTATIONS, Augmentation


@dataclass
class Sign:
    decay: float = key(0.9, "decay of the momentum", low=0, high=1)


class SignSGD(torch.optim.Optimizer):
    def __init__(self, groups, lr, decay):
        super().__init__(groups, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                    mean.lerp_(weight.grad, 1 - group["decay"])
                    weight.sub_(group["lr"] * mean.sign())


OPTIMIZERS["sign"] = OptimizerKind(lambda groups, of: SignSGD(groups, of.lr[0], of.options["decay"]), Sign)
SCHEDULES["square"] = lambda done: done * done
AUGMENTATIONS["dark"] = Augmentation(
    1,
    lambda draws, options: (draws < options.p,),
    lambda x, plan, alpha: torch.where(plan[0][..., None, None], x / 2, x),
)
EXTRACTORS["other"] = Kind(Toy, "tanh", 16, "bilinear", (127.5,) * 3, (64.0,) * 3, dim=32, num_logits=10)
ALERT_RULES["mine"] = AlertRule("Logits/D_accuracy", -1.0, 1, "Always", "it is {value:.2f}")
degrade_spec.KINDS["fog"] = degrade_spec.Kind("share of white", 0, 1)
degrade.KINDS["fog"] = lambda x, share, seeds, purpose, step: x + share[:, None, None, None] * (255 - x)


class Lines:
    def __init__(self, run):
        self.file = open(run.folder / "lines.txt", "a")

    def log(self, images, values, grids):
        print(images, *grids, file=self.file, flush=True)

    def finish(self, state):
        print(state, file=self.file, flush=True)


TRACKERS["lines"] = Lines
"""
USING = [
    "optim={G: {name: sign, options: {decay: 0.5}}, D: {name: sign}}",
    "train.schedule_shape=square",
    "optim.G.lr=[1e-3,1e-4]",
    "train.schedule_images=480",
    "augment={pipe: dark, p: 0.5}",
    "run.trackers=[lines]",
    "eval={every: 240, extractor: other, num_images: 60}",
]


@pytest.mark.usefixtures("dictionaries")
def test_parts_of_every_other_kind_train_and_resume_exactly(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "others.py").write_text(OTHERS)
    own = [*USING, "--plugin", str(tmp_path / "others.py"), "train.tick=120"]
    assert main(["check", str(config), *own, f"run.dir={tmp_path / 'checked'}"]) == 0
    told = capsys.readouterr().out
    for part in ("optimizer sign", "schedule square", "augmentation dark", "extractor other", "degradation fog"):
        assert f"plugin others.py: {part}: " in told
    assert train(config, tmp_path / "whole", *own, "train.images=480") == 0
    for images in ("240", "480"):
        assert train(config, tmp_path / "parts", *own, f"train.images={images}") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    first = next(row["Optim/lr_G"] for row in metrics(tmp_path / "whole"))
    assert first == pytest.approx(1e-3 - 9e-4 * (120 / 480) ** 2, rel=1e-5)
    assert "Metrics/fd_other_60_full" in (tmp_path / "whole" / "evals.jsonl").read_text()
    assert (tmp_path / "whole" / "log.txt").read_text().count("Always it is") == 1
    told_whole, told_parts = ((tmp_path / name / "lines.txt").read_text().splitlines() for name in ("whole", "parts"))
    numbers = [line.split()[0] for line in told_whole[:-1]]
    assert numbers == sorted(set(numbers), key=int)  # each image count once
    assert {"120", "240", "360", "480"} <= set(numbers)
    assert told_whole[-1] == "finished"
    assert sorted(line.split()[0] for line in told_parts if line[0].isdigit()) == sorted(numbers)

    restoring = ["model.family=restore", "model.conditional=false", "restore.degrade=[{fog: [0.1, 0.5]}]"]
    restoring += ["--plugin", str(tmp_path / "others.py")]
    assert train(config, tmp_path / "restored", *restoring, "train.images=24") == 0
    assert train(config, tmp_path / "refused", *restoring[:-2], "restore.degrade=[{fogg: 1}]") == 2


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
