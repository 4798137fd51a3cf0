"""Frozen weights never move, learning rates differ by group, and what matches nothing or everything is refused."""

from pathlib import Path

import processes
import pytest
import torch
from runs import train, weights
from torch import nn

from distgan.cli.main import main
from distgan.config.load import load
from distgan.config.schema import Optimizer
from distgan.distributed.process_group import World
from distgan.errors import ConfigError
from distgan.image_spec import square
from distgan.losses.gradient_penalty import clip_weights
from distgan.storage import checkpoint, checkpoint_folder
from distgan.training import factory, optimizers, parameter_groups
from distgan.training.gan_step import GanStep
from distgan.training.learner import set_rates
from distgan.training.schedulers import OptimizerRates
from distgan.training.step_inputs import StepOptions

FREEZE = ("optim.D.freeze=2", "optim.G.freeze=[layers.0,embed]", "optim.D.lr_factors=[head=0.5,embed=2]")


def newest(run: Path) -> checkpoint.Tensors:
    return checkpoint.load(checkpoint_folder.newest_first(run / "checkpoints")[0])[0]


def require_frozen(config: Path, run: Path) -> None:
    """The frozen weights of a run are those that it started with, and all others have moved."""
    settings = load(str(config), [*FREEZE, f"run.dir={run}"])
    G, D = factory.build_nets(settings, 10)
    frozen, after = factory.freeze_weights(settings, G, D), newest(run)
    assert all(frozen.values())
    for name, net in (("G", G), ("D", D)):
        for weight, before in net.named_parameters():
            if weight != "head.bias":  # which a relativistic loss has no gradient for
                assert torch.equal(after[name][weight], before) == (weight in frozen[name]), (name, weight)
            if name == "G" and weight in frozen[name]:
                assert torch.equal(after["G_ema"][weight], before), weight


@pytest.mark.parametrize(
    "more",
    [
        ("optim.D.name=adamw", "optim.D.weight_decay=0.5"),
        ("optim.D.name=sgd", "optim.G.name=rmsprop", "optim.D.betas=[0.5,0.9]"),
        ("loss.name=wasserstein", "loss.weight_clip=0.01", "loss.r1=0", "loss.r2=0"),
    ],
)
def test_frozen_weights_never_move_and_a_resumed_run_is_the_unbroken_one(
    tmp_path: Path, config: Path, more: tuple[str, ...]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run, images in ((whole, 72), (broken, 36), (broken, 72)):
        assert train(config, run, f"train.images={images}", *FREEZE, *more) == 0
    assert weights(whole) == weights(broken)
    require_frozen(config, whole)
    assert "frozen: " in (whole / "log.txt").read_text()


@pytest.mark.multi
@pytest.mark.parametrize("sync", ["ddp", "flat"])
def test_frozen_weights_never_move_on_two_ranks(tmp_path: Path, config: Path, sync: str) -> None:
    whole, broken, again = tmp_path / "whole", tmp_path / "broken", [str(config), *FREEZE, f"train.grad_sync={sync}"]
    for run, images in ((whole, 72), (broken, 36), (broken, 72)):
        processes.train(2, tmp_path / "log", *again, f"train.images={images}", f"run.dir={run}")
    assert weights(whole) == weights(broken)
    require_frozen(config, whole)


def test_layers_count_from_the_input_side(config: Path) -> None:
    settings = load(str(config), ["model.family=resnet", "model.G.base_channels=8", "model.D.base_channels=8"])
    _, D = factory.build_nets(settings, 10)  # with spectral norm
    assert parameter_groups.layers(D)[:3] == ["blocks.0.first", "blocks.0.second", "blocks.0.shortcut"]
    assert "embed" not in parameter_groups.layers(D)
    names = parameter_groups.freeze(D, ["2"], "optim.D.freeze")
    assert {name.split(".")[2] for name in names} == {"first", "second"}
    assert all(name.startswith("blocks.0.") for name in names)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.D.freeze=nothing*", "matches no weight"),
        ("optim.G.freeze=0", "choose from 1"),
        ("optim.D.freeze=99", "choose from 1"),
        ("optim.D.freeze=['*']", "freezes all"),
        ("optim.G.lr_factors=[no.such=0.1]", "matches no weight"),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_what_matches_nothing_or_everything_is_refused(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, command: str, setting: str, message: str
) -> None:
    assert main([command, str(config), f"run.dir={tmp_path / 'run'}", setting]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert setting.partition("=")[0] in error


@pytest.mark.parametrize("text", ["0.1", "embed=", "embed=-1", "embed=nan", "embed=fast"])
def test_a_factor_that_is_none_is_refused(config: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="PATTERN=FACTOR"):
        load(str(config), [f"optim.G.lr_factors=['{text}']"])


def test_a_factor_scales_the_step_of_sgd() -> None:
    """In closed form: w - factor * lr * gradient."""
    net = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    settings = Optimizer(name="sgd", lr=[0.5], betas=(0.0, 0.9), lr_factors=["a.weight=0", "a=3", "b=0.25"])
    optimizer = optimizers.build_optimizer(settings, net, "optim.G")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}

    set_rates(optimizer, OptimizerRates(0.5, (0.0, 0.9)))
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    factors = {"a.weight": 0.0, "a.bias": 3.0, "b.weight": 0.25, "b.bias": 0.25, "c.weight": 1.0, "c.bias": 1.0}
    for name, weight in net.named_parameters():
        assert torch.allclose(weight, before[name] - 0.5 * factors[name]), name


def test_clipping_leaves_frozen_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(2.0)
    parameter_groups.freeze(net, ["1"], "optim.D.freeze")
    with torch.no_grad():
        clip_weights(net, 0.1)
    assert [float(weight.detach().max()) for weight in net.parameters()] == pytest.approx([2, 2, 0.1, 0.1])


def test_what_was_frozen_starts_from_zero_once_it_is_trained(tmp_path: Path, config: Path) -> None:
    run, sgd = tmp_path / "run", ("optim.D.name=sgd", "optim.D.betas=[0.9,0.9]")
    assert train(config, run, "train.images=24", "optim.D.freeze=1", *sgd) == 0
    assert train(config, run, "train.images=48", "run.allow_config_change=true", *sgd) == 0
    state = newest(run)["opt_D"]
    assert "stages.0.0.weight/momentum_buffer" in state
    assert all(value.abs().max() < 100 for value in state.values())


def test_a_frozen_layer_under_spectral_norm_keeps_its_vectors() -> None:
    settings = load(str(processes.ROOT / "configs" / "sngan-cifar10.yaml"), ["data.shards=x", "run.dir=y"])
    settings.model.G["base_channels"] = settings.model.D["base_channels"] = 8
    G, D = factory.build_nets(settings, 3)
    frozen = parameter_groups.freeze(D, ["1"], "optim.D.freeze")
    step = GanStep(World(), G, D, StepOptions("hinge", square(32)))
    stepped = {id(weight) for _, weight in step._spectral_norms}
    names = {name for name, weight in D.named_parameters() if id(weight) in stepped}
    assert frozen and not names & set(frozen)
    assert names == {name for name, _ in D.named_parameters() if name.endswith("original")} - set(frozen)
