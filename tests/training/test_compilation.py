"""Compiled steps make the same update as eager ones, on any number of ranks, and leave no trace in a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import WORKERS, output, run_ranks, train
from ranks_gradients import SMALL
from runs import make_digits, metrics, write_config
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from distgan.config.load import load
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, MachineError
from distgan.image_spec import square
from distgan.losses import gradient_penalty
from distgan.models import MODELS
from distgan.training import compilation
from distgan.training.gan_step import GanStep
from distgan.training.step_inputs import StepBatch, StepHyperparams, StepOptions

SCRIPT = str(WORKERS / "ranks_compiled.py")


@pytest.mark.multi
@pytest.mark.parametrize(
    ("mode", "world", "num"),
    [
        ("all", 1, 1),
        pytest.param("all", 2, 3, marks=pytest.mark.slow),
        pytest.param("g", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_compiled_gradients_are_the_eager_ones_and_are_sent_once(
    mode: str, world: int, num: int, tmp_path: Path
) -> None:
    """By the tracing that every backend starts from; what inductor makes of it is in the slow test below."""
    assert run_ranks(world, [SCRIPT, mode, str(num)], tmp_path / "log", timeout=280) == [0] * world, output(
        tmp_path / "log", world
    )


@pytest.mark.parametrize("family", ["dcgan", "r3gan", "resnet"])
def test_the_traced_gradient_is_autograds_in_every_order(family: str) -> None:
    torch.manual_seed(0)
    D = MODELS[family].discriminator(square(16), 3, **SMALL[family][1]).double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
    gradient, logits = gradient_penalty.traced_gradient(lambda x: D(x, labels), images)
    traced = torch.autograd.grad(
        gradient_penalty.mean_square(gradient) + logits.sum(), list(D.parameters()), allow_unused=True
    )
    images.requires_grad_()
    logits = D(images, labels)
    total = gradient_penalty.squared_gradient(logits, images) + logits.sum()
    expected = torch.autograd.grad(total, list(D.parameters()), allow_unused=True)
    for one, other in zip(traced, expected):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-12, atol=1e-12 * other.abs().max().item())


class SpoilingCompiler:
    """A backend of torch.compile whose functions return memory that is overwritten when the next step begins."""

    def __init__(self) -> None:
        self.returned: list[torch.Tensor] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        def call(*args: torch.Tensor) -> object:
            made = graph(*args)
            self.returned += [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
            return made

        return call

    @torch.no_grad()
    def spoil(self) -> None:
        for tensor in self.returned:
            tensor.data.fill_(float("nan"))
        self.returned.clear()


@pytest.mark.parametrize("extra", [{}, {"feature_matching": 1.0}, {"accumulation_steps": 2}])
def test_nothing_that_a_cuda_graph_overwrites_is_read(extra: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**options: object) -> tuple[list[torch.Tensor], dict[str, float]]:
        torch.manual_seed(0)
        G = MODELS["dcgan"].generator(square(16), 6, 0, embed_dim=0, **SMALL["dcgan"][0])
        D = MODELS["dcgan"].discriminator(square(16), 0, **SMALL["dcgan"][1])
        step = GanStep(World(), G, D, StepOptions("rpgan", augment="flip", **extra, **options))
        opt_G, opt_D = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (G, D))
        for _ in range(3):
            images, z = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8), torch.randn(8, 6)
            batch = StepBatch(images, None, z, -z, torch.arange(8))
            step.d_step(batch, opt_D, StepHyperparams(r1=1.0, augment_p=0.5))
            step.g_step(batch, opt_G, StepHyperparams(augment_p=0.5))
        spoiling.spoil()
        return [*G.parameters(), *D.parameters(), *step.last_scores()], step.stats.flush()

    spoiling = SpoilingCompiler()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", spoiling.spoil)
    expected, expected_stats = run()
    torch._dynamo.reset()
    found, found_stats = run(compile="g", backend=spoiling, cuda_graphs=True)
    torch.testing.assert_close(found, expected)
    assert found_stats == pytest.approx(expected_stats, rel=1e-4, abs=1e-6)


def test_cuda_graphs_need_what_they_replay(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"train\.compile=off compiles nothing: set g or all"):
        load(str(config), ["train.cuda_graphs=true"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.deterministic=strict"], "set train.compile=off, or train.deterministic=warn"),
        (["model.dropout=0.2"], "cannot trace the draws of model.dropout"),
        (["model.D.norm=batch"], "batch norm in D mixes"),
    ],
)
def test_what_cannot_be_compiled_is_refused(settings: list[str], says: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", tmp_path)
    with pytest.raises(ConfigError, match=says):
        load(str(config), ["train.compile=all", *settings])


def test_a_missing_compiler_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MachineError, match=r"no-such-compiler is not there\): install g\+\+.* train\.compile=off"):
        compilation.compiled(len, torch.device("cpu"))
    compilation.compiled(len, torch.device("cpu"), backend="aot_eager")  # which needs none


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", ["g", "all"])
def test_a_compiled_run_is_the_eager_one(mode: str, tmp_path: Path) -> None:
    """With inductor, through the command; an eager run takes its checkpoint up."""
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    common = [str(config), "train.images=120", "wandb.mode=disabled"]
    for name in ("off", mode):
        command = ["-m", "distgan", "train", *common, f"train.compile={name}", f"run.dir={tmp_path / name}"]
        assert run_ranks(1, command, tmp_path / "log", timeout=3000) == [0], output(tmp_path / "log")
    for ours, theirs in zip(metrics(tmp_path / mode), metrics(tmp_path / "off"), strict=True):
        for key in ("Loss/D", "Loss/G", "Loss/r1", "Logits/real_minus_fake", "Optim/grad_norm_D"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
    for file in ("G.safetensors", "D.safetensors"):
        ours, theirs = (load_file(next((tmp_path / name).glob(f"checkpoints/step-*/{file}"))) for name in (mode, "off"))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    train(1, tmp_path / "log-on", *common[:1], "train.images=240", "wandb.mode=disabled", f"run.dir={tmp_path / mode}")
