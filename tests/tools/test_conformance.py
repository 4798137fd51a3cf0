"""Conformance of parts: what is built in passes, and each kind of mistake is found."""

from pathlib import Path

import pytest
from own_parts import dictionaries, example  # noqa: F401 (a fixture)
from runs import make_digits, write_config

from distgan.cli.main import main
from distgan.config import plugins
from distgan.config.load import load
from distgan.tools import conformance

CHEAP = {"extractor": ("toy",), "tracker": ()}  # others need files of weights
BUILT_IN = [
    (kind, name)
    for kind in conformance._CHECKS
    for name in CHEAP.get(kind, plugins._dictionary(kind))
    if name != "restore"  # whose networks start from images
]
pytestmark = pytest.mark.usefixtures("dictionaries")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tmp_path / "digits", resolution=32)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[f"{kind}-{name}" for kind, name in BUILT_IN])
def test_what_is_built_in_passes(path: Path, kind: str, name: str) -> None:
    small = {
        "r3gan": ["model.G.widths=[8]", "model.D.widths=[8]"],
        "resnet": ["model.G.base_channels=8", "model.D.base_channels=8"],
        "hourglass": ["model.G.base_channels=4", "model.D={base_channels: 4, norm: none}"],
        "stylegan2": ["model.G={channel_base: 64, w_dim: 8}", "model.D.channel_base=64"],
    }
    text = path.read_text().replace("  G: {base_channels: 8, max_channels: 16}\n", "")
    path.write_text(text.replace("  D: {base_channels: 8, max_channels: 16}\n", ""))
    own = [f"model.family={name}", *small.get(name, [])] if kind == "family" else []
    config = load(str(path), own)
    assert list(conformance._tried(conformance._CHECKS[kind], name, config, 10)) == []


HEAD = "import torch, numpy as np\nfrom torch import nn\n"
BAD = {
    "a loss that sums": (
        (
            "from distgan.losses.adversarial import *\n"
            "LOSSES['x'] = Loss(lambda real, fake: (fake - real).sum(), lambda fake, real: -fake.mean())"
        ),
        "loss x: D's loss of 4 images",
    ),
    "a loss without a mean": (
        (
            "from distgan.losses.adversarial import *\n"
            "LOSSES['x'] = Loss(lambda real, fake: fake - real, lambda fake, real: -fake.mean())"
        ),
        "take the mean, a number",
    ),
    "a loss that overflows": (
        (
            "from distgan.losses.adversarial import *\n"
            "LOSSES['x'] = Loss(lambda real, fake: (fake - real).exp().mean(), lambda fake, real: -fake.mean())"
        ),
        "is not finite at logits of",
    ),
    "a loss that raises": (
        (
            "from distgan.losses.adversarial import *\n"
            "LOSSES['x'] = Loss(lambda real, fake: fake.men(), lambda fake, real: -fake.mean())"
        ),
        "raises AttributeError in line 4 of bad.py",
    ),
    "a schedule that ends early": (
        "from distgan.training.schedulers import SCHEDULES\nSCHEDULES['x'] = lambda done: done / 2",
        "schedule x: gives 0.5 at 1",
    ),
    "an augmentation at p = 0": (
        (
            "from distgan.transforms.augment import *\n"
            "AUGMENTATIONS['x'] = Augmentation(1, lambda draws, options: (draws,), lambda x, plan, alpha: x + 1)"
        ),
        "changes images at p = 0",
    ),
    "an augmentation over the batch": (
        (
            "from distgan.transforms.augment import *\n"
            "AUGMENTATIONS['x'] = Augmentation(1, lambda draws, options: (draws < options.p,), "
            "lambda x, plan, alpha: torch.where(plan[0][..., None, None], x - x.mean(), x))"
        ),
        "changes an image otherwise alone than in a batch",
    ),
    "an augmentation without a gradient": (
        (
            "from distgan.transforms.augment import *\n"
            "AUGMENTATIONS['x'] = Augmentation(1, lambda draws, options: (draws < options.p,), "
            "lambda x, plan, alpha: torch.where(plan[0][..., None, None], x.detach(), x))"
        ),
        "passes no gradient on",
    ),
    "a transform in place": (
        (
            "from distgan.data.host_transforms import *\n"
            "def f(pixels, draws, options):\n    pixels[:] = 0\n    return pixels\n"
            "TRANSFORMS['x'] = HostTransform(f)"
        ),
        "changes the array that it is given",
    ),
    "a transform by chance": (
        (
            "from distgan.data.host_transforms import *\n"
            "TRANSFORMS['x'] = HostTransform(lambda p, d, o: (p * np.random.rand()).astype(p.dtype))"
        ),
        "is another one each time",
    ),
    "a transform to floats": (
        "from distgan.data.host_transforms import *\nTRANSFORMS['x'] = HostTransform(lambda p, d, o: p / 2)",
        "returned float64: an array of uint8 is needed",
    ),
    "a degradation over the batch": (
        (
            "from distgan.transforms import degrade, degrade_spec\n"
            "degrade_spec.KINDS['x'] = degrade_spec.Kind('share', 0, 1)\n"
            "degrade.KINDS['x'] = lambda x, strength, seeds, purpose, step: x.mean().expand_as(x)"
        ),
        "changes an image otherwise alone than in a batch",
    ),
    "a metric of another name": (
        (
            "from distgan.metrics.registry import *\n"
            "METRICS['x'] = Metric(lambda real, fake, errors: {'y': (1.0, NAN)}, ('x',))"
        ),
        "returns y, and declares x",
    ),
    "a metric by chance": (
        (
            "from distgan.metrics.registry import *\n"
            "METRICS['x'] = Metric(lambda real, fake, errors: {'x': (float(torch.rand(())), NAN)}, ('x',))"
        ),
        "returns another x each time",
    ),
    "an optimizer with a rate of its own": (
        (
            "from distgan.training.optimizers import *\n"
            "class Own(torch.optim.SGD):\n"
            "    def step(self):\n"
            "        for group in self.param_groups:\n"
            "            for w in group['params']:\n"
            "                w.data.sub_(w.grad, alpha=0.1)\n"
            "OPTIMIZERS['x'] = OptimizerKind(lambda groups, settings: Own(groups, lr=1))"
        ),
        "moves weights at a learning rate of 0",
    ),
    "an optimizer with state of its own": (
        (
            "from distgan.training.optimizers import *\n"
            "class Own(torch.optim.SGD):\n"
            "    num = 0\n"
            "    def step(self):\n"
            "        self.num += 1\n"
            "        for group in self.param_groups:\n"
            "            for w in group['params']:\n"
            "                w.data.sub_(w.grad, alpha=group['lr'] / self.num)\n"
            "OPTIMIZERS['x'] = OptimizerKind(lambda groups, settings: Own(groups, lr=1))"
        ),
        "keeps something outside of its state",
    ),
    "an optimizer with a number as state": (
        (
            "from distgan.training.optimizers import *\n"
            "class Own(torch.optim.SGD):\n"
            "    def step(self):\n"
            "        for group in self.param_groups:\n"
            "            for w in group['params']:\n"
            "                self.state[w]['num'] = self.state[w].get('num', 0) + 1\n"
            "                w.data.sub_(w.grad, alpha=group['lr'])\n"
            "OPTIMIZERS['x'] = OptimizerKind(lambda groups, settings: Own(groups, lr=1))"
        ),
        "keeps 'num' as int",
    ),
    "an extractor of weights by chance": (
        (
            "from distgan.metrics.extractors import *\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.layer = nn.Linear(3, 4)\n"
            "    def forward(self, x):\n"
            "        return self.layer(x.mean((2, 3))), None\n"
            "EXTRACTORS['x'] = Kind(Net, 'mean', 16, 'bilinear', (0.0,) * 3, (1.0,) * 3, dim=4)"
        ),
        "has other weights each time it is built",
    ),
    "a rule that cannot be filled in": (
        (
            "from distgan.tracking.alerts import *\n"
            "ALERT_RULES['x'] = AlertRule('Loss/D', 1.0, 3, 'High', '{what} is high')"
        ),
        "raises KeyError",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_found(path: Path, tmp_path: Path, mistake: str) -> None:
    code, told = BAD[mistake]
    (tmp_path / "bad.py").write_text(HEAD + code + "\n")
    lines, wrong = conformance.conformance(load(str(path), more_plugins=[str(tmp_path / "bad.py")]), 10)
    assert told in "\n".join(wrong)
    assert not lines


NETWORKS = {
    "another argument": ("def forward(self, z, labels=None):", "def forward(self, z, c=None):", "forward takes z, c"),
    "another shape": (".unflatten(1, self.shape)", "", "G returns [4, 3072] for images [4, 3, 32, 32]"),
    "a batch that is compared": (
        "hidden = relu(self.hidden(images.flatten(1)))",
        "hidden = relu(self.hidden(images.flatten(1)))\n        hidden = hidden - hidden.mean(0)",
        "another gradient for 4 images in two passes than in one",
    ),
    "a batch that is counted": (
        "logits = self.out(",
        "self.num = getattr(self, 'num', 0) + 1\n        logits = self.num * self.out(",
        "state in G that a checkpoint does not keep",
    ),
    "weights by another chance": (
        "self.epilogue = epilogue(width, (1, 1))",
        (
            "self.epilogue = epilogue(width, (1, 1))\n"
            "        self.hidden.weight.data += torch.tensor(np.random.rand(), dtype=torch.float32)"
        ),
        "draws other weights when it is built again",
    ),
}


@pytest.mark.parametrize("mistake", NETWORKS)
def test_a_mistake_of_networks_is_found(path: Path, tmp_path: Path, mistake: str) -> None:
    good, bad, told = NETWORKS[mistake]
    plugin = example(tmp_path / "my_parts.py")
    assert good in plugin.read_text()
    plugin.write_text("import torch\n" + plugin.read_text().replace(good, bad))
    _, wrong = conformance.conformance(load(str(path), more_plugins=[str(plugin)]), 10)
    assert told in "\n".join(wrong)


def test_check_tells_what_passed_and_refuses_what_did_not(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_digits(tmp_path / "digits", resolution=32)
    plugin = example(tmp_path / "my_parts.py")
    assert main(["check", str(path), "--plugin", str(plugin), f"run.dir={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().out
    for part in ("loss margin", "family mlp", "host transform dim", "metric spread"):
        assert f"plugin my_parts.py: {part}: " in told
    (tmp_path / "bad.py").write_text(HEAD + BAD["a loss that sums"][0])
    assert main(["check", str(path), "--plugin", str(tmp_path / "bad.py"), f"run.dir={tmp_path / 'run'}"]) == 2
    assert "parts of plugins are not as training needs them" in capsys.readouterr().err
