"""The memory format of networks: how it is chosen, and that training and checkpoints do not depend on it."""

import types
from pathlib import Path

import pytest
import torch
from torch import nn

from distgan.config.load import from_dict
from distgan.config.schema import Config, Optimizer
from distgan.distributed.process_group import World
from distgan.errors import ConfigError
from distgan.image_spec import square
from distgan.models import MODELS
from distgan.storage import checkpoint
from distgan.training import memory_format, optimizers
from distgan.training.gan_step import GanStep
from distgan.training.memory_format import FORMATS, choose
from distgan.training.step_inputs import StepBatch, StepHyperparams, StepOptions

GPU = types.SimpleNamespace(device=torch.device("cuda"), run_on_main=lambda function: function())
SMALL = {
    "dcgan": (
        {"base_channels": 4, "max_channels": 16, "norm": "none", "embed_dim": 4},
        {"base_channels": 4, "max_channels": 16, "norm": "none"},
    ),
    "resnet": ({"base_channels": 8, "norm": "none"}, {"base_channels": 8}),
}


def config_of(family: str = "dcgan", value: str = "auto") -> Config:
    config = Config()
    config.model.family, config.train.memory_format = family, value
    config.data.resolution, config.model.z_dim = 16, 8
    return config


def nets(family: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    G, D = SMALL[family]
    return MODELS[family].generator(square(16), 8, 0, **G), MODELS[family].discriminator(square(16), 0, **D)


def test_on_a_cpu_the_family_decides_and_the_setting_wins() -> None:
    for family, automatic in (("resnet", "channels_last"), ("dcgan", "contiguous")):
        for value in ("auto", *FORMATS):
            found = choose(config_of(family, value), World(), str, lambda: pytest.fail("no probe on a CPU"), 4)
            assert found == (automatic if value == "auto" else value)


@pytest.mark.parametrize("faster", FORMATS)
def test_on_a_gpu_the_faster_one_is_taken_unless_the_checkpoint_has_one(
    faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_format, "time_passes", lambda *given: 1.0 if given[-1] == faster else 2.0)
    for saved in ("", "nonsense", *FORMATS):
        found = choose(config_of(), GPU, lambda saved=saved: saved, lambda: nets("dcgan"), 4)
        assert found == (saved if saved in FORMATS else faster)


@pytest.mark.parametrize("deterministic", ["warn", "strict"])
def test_no_clock_decides_where_runs_are_to_be_repeated(deterministic: str) -> None:
    config = config_of("resnet")
    config.train.deterministic = deterministic
    assert choose(config, GPU, str, lambda: pytest.fail("a probe"), 4) == "contiguous"


@pytest.mark.parametrize("name", FORMATS)
def test_real_images_have_the_format_of_the_weights(name: str) -> None:
    seen = []
    G, D = nets("dcgan")
    D.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    step = GanStep(World(), G, D, StepOptions("hinge", memory_format=FORMATS[name]))
    images, z = torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.zeros(4, 8)
    batch = StepBatch(images, None, z, z, torch.arange(4))
    step.d_step(batch, torch.optim.SGD(D.parameters(), lr=0.1), StepHyperparams())
    assert seen[0].is_contiguous(memory_format=FORMATS[name])


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("name", FORMATS)
def test_the_probe_runs_both_networks(family: str, name: str) -> None:
    G, D = nets(family)
    assert memory_format.time_passes(config_of(family), torch.device("cpu"), G, D, 2, name) > 0
    assert all(weight.grad is not None for weight in (*G.parameters(), *D.parameters()))


class Run:
    """Steps of small networks in float64, with their optimizers."""

    def __init__(self, family: str, name: str) -> None:
        self.nets = {key: net.double().to(memory_format=FORMATS[name]) for key, net in zip("GD", nets(family))}
        options = StepOptions("hinge", dtype=torch.float64, augment="ada")
        self.step = GanStep(World(), self.nets["G"], self.nets["D"], options)
        settings = Optimizer(lr=[1e-3, 1e-3])
        self.optimizers = {key: optimizers.build_optimizer(settings, net) for key, net in self.nets.items()}

    def train(self, number: int) -> None:
        g = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (4, 16, 16, 3), generator=g, dtype=torch.uint8)
        z = torch.randn(2, 4, 8, generator=g, dtype=torch.float64)
        batch = StepBatch(images, None, *z, torch.arange(4) + number)
        hp = StepHyperparams(r1=1.0, augment_p=0.5)
        self.step.d_step(batch, self.optimizers["D"], hp)
        self.step.g_step(batch, self.optimizers["G"], hp)

    def saved(self) -> dict[str, dict[str, torch.Tensor]]:
        found = {key: net.state_dict() for key, net in self.nets.items()}
        found |= {f"opt_{k}": checkpoint.optimizer_tensors(self.optimizers[k], self.nets[k]) for k in "GD"}
        return {key: {n: tensor.clone() for n, tensor in named.items()} for key, named in found.items()}

    def load(self, saved: dict[str, dict[str, torch.Tensor]]) -> None:
        for key, net in self.nets.items():
            net.load_state_dict(saved[key])
            checkpoint.load_optimizer(self.optimizers[key], net, saved[f"opt_{key}"])


@pytest.mark.parametrize("family", SMALL)
def test_updates_are_the_same_in_both_formats(family: str) -> None:
    runs = [Run(family, name) for name in FORMATS]
    assert any(not weight.is_contiguous() for weight in runs[1].nets["D"].parameters())
    for run in runs:
        for number in range(2):
            run.train(number)
    for one, other in zip(*(run.nets["G"].parameters() for run in runs)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("name", FORMATS)
def test_a_resumed_run_is_the_unbroken_one_bit_by_bit(family: str, name: str, tmp_path: Path) -> None:
    whole, resumed = Run(family, name), Run(family, name)
    whole.train(0)
    path = checkpoint.save(tmp_path, 4, whole.saved(), {"images": 4, "num_classes": 0, "config": {}})
    resumed.load(checkpoint.load(path)[0])
    for net, optimizer in zip(resumed.nets.values(), resumed.optimizers.values()):
        for weight in net.parameters():
            assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    for run in (whole, resumed):
        run.train(1)
    one, other = whole.saved(), resumed.saved()
    assert all(torch.equal(one[key][n], other[key][n]) for key in one for n in one[key])


def test_a_wrong_value_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="'auto', 'contiguous', 'channels_last'"):
        from_dict({"train": {"memory_format": "nhwc"}})
