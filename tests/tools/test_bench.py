"""`distgan bench` measures what it says, against a loop that does the same work, and leaves nothing behind."""

import contextlib
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import output, run_ranks
from runs import write_config
from torch.utils._python_dispatch import TorchDispatchMode

from distgan.cli.main import main
from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load
from distgan.config.schema import Config
from distgan.data import shard_index
from distgan.data.synthetic import write_shards
from distgan.errors import ConfigError
from distgan.image_spec import square
from distgan.models import MODELS
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.tools.bench import bench as measured
from distgan.tools.bench import scaling
from distgan.tools.bench.bare_loop import DLoss, GLoss, check_supported
from distgan.tools.bench.bench import bench
from distgan.tools.bench.harness import endless, running_trainer, temporary_run
from distgan.tools.bench.table import Row
from distgan.training.discriminator import AugmentedDiscriminator
from distgan.training.objectives import DiscriminatorLoss, GeneratorLoss
from distgan.training.step_inputs import MicroBatch, StepHyperparams, StepOptions
from distgan.training.timing import Timeline


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", Path("synthetic"))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def medians(rows: list[Row]) -> dict[str, float]:
    return {row.name: row.median for row in rows}


def test_the_table_adds_up_and_nothing_is_left(config: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "NULL_ITERATIONS", 3)
    rows = bench(load(str(config)), images=1, against=["bare", "alone"], rounds=1)
    found = medians(rows)
    parts = ("D step", "G step", "average generator", "next batch", "between two iterations")
    whole = next(value for name, value in found.items() if name.startswith("an iteration"))
    assert 0.5 * whole < sum(found[part] for part in parts) < 1.1 * whole  # on a machine with other work
    assert found["images per second"] == pytest.approx(12 * 1000 / whole)
    assert 0 < found["  its optimizer"] < found["D step"]
    assert {"  r1, where it is applied, adds", "  r2, where it is applied, adds"} <= found.keys()
    assert found["peak memory, process"] > 0.05
    assert found["loader: pure decoding over all of its CPU time"] > 0
    assert found["over a bare loop, CPU time of all threads"] > 0
    assert list(scratch.glob("distgan*")) == []


@pytest.mark.multi
@pytest.mark.parametrize(
    ("way", "times"),
    [
        pytest.param("train.grad_sync=ddp", 1.0, marks=pytest.mark.slow),
        ("train.grad_compression=bf16", 0.5),
        pytest.param("train.grad_sync=flat", 1.0, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_send_each_gradient_once(config: Path, scratch: Path, tmp_path: Path, way: str, times: float) -> None:
    command = ["-m", "distgan", "bench", str(config), way, "--json", "--baseline", "alone"]
    command += ["--images", "1", "--rounds", "1"]
    assert run_ranks(2, command, tmp_path / "log", TMPDIR=str(scratch)) == [0, 0], output(tmp_path / "log", 2)
    text = Path(f"{tmp_path / 'log'}.0").read_text()
    found = {row["name"]: row for row in json.loads(text[text.index("{\n") :])["rows"]}
    for net in "DG":
        assert found[f"all-reduced in a {net} step, over the bytes of {net}"]["figures"] == [times]
    assert found["img/s of 2 ranks over the same number of runs of one rank at the same time"]["median"] > 0
    assert list(scratch.glob("distgan*")) == []


@pytest.mark.parametrize("loss", ["non_saturating", "rpgan"])
def test_the_bare_loop_minimises_what_a_run_does(loss: str) -> None:
    """Both losses, and the gradients of all penalties, on the same images."""
    torch.manual_seed(0)
    G = MODELS["dcgan"].generator(square(16), 6, 3, base_channels=4, max_channels=8, norm="none", embed_dim=3)
    D = MODELS["dcgan"].discriminator(square(16), 3, base_channels=4, max_channels=8, norm="none")
    real, fake, z = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    labels, seeds = torch.tensor([0, 1, 2, 0]), torch.arange(4)
    discriminator, options = AugmentedDiscriminator(D), StepOptions(loss)
    batch = MicroBatch(z, labels, seeds, real.clone())
    ours = DiscriminatorLoss(discriminator, options)
    theirs = DLoss(D, loss, {"r1": 2.0, "r2": 3.0, "gp": 0.0}, False)
    gradients = []
    for total in (
        ours(batch, fake.clone(), StepHyperparams(2.0, 3.0)).loss,
        theirs(real.clone(), fake.clone(), labels, True),
        GeneratorLoss(G, discriminator, options)(MicroBatch(z, labels, seeds, real), StepHyperparams()).loss,
        GLoss(G, D, loss, False)(z, real, labels),
    ):
        (total).backward()
        gradients.append([total.detach(), *(p.grad for net in (D, G) for p in net.parameters() if p.grad is not None)])
        D.zero_grad(), G.zero_grad()
    for one, other in (gradients[:2], gradients[2:]):
        assert len(one) == len(other) > 1
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b)


def test_the_bare_loop_says_what_it_lacks(config: Path) -> None:
    check_supported(load(str(config)))
    with pytest.raises(ConfigError, match=r"has no augment\.pipe=ada; compare with augment\.pipe=none"):
        check_supported(load(str(config), ["augment.pipe=ada"]))
    with pytest.raises(ConfigError, match=r"has no optim\.D\.freeze=\['1'\]; compare with optim\.D\.freeze=\[\]"):
        check_supported(load(str(config), ["optim.D.freeze=1"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scaling", "2,x"], "numbers of ranks, such as 1,2,4"),
        (["--scaling", "0"], "numbers of ranks, such as 1,2,4"),
        (["--images", "-1"], "positive numbers"),
        (["train.batch=0"], "train.batch=0: must be"),
    ],
)
def test_a_mistake_is_told(config: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", str(config), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_sweep_leaves_out_what_does_not_fit(config: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[str] = []

    def run(config: Config, world: object, images: int) -> tuple[float, float]:
        if config.train.micro_batch > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        formats.append(config.train.memory_format)
        return 100.0 / config.train.micro_batch, 2.0, "channels_last"

    monkeypatch.setattr(scaling, "_speed", run)
    found = medians(scaling.sweep(load(str(config), ["train.batch=12"]), 0))
    assert found["fastest train.micro_batch"] == 3
    assert set(formats) == {"auto", "channels_last"} and formats[-1] == "channels_last"  # chosen once
    assert found["train.micro_batch=6: peak memory, GPU"] == 2.0
    assert "train.micro_batch=12: images per second" not in found


@pytest.mark.slow
def test_sweep_and_scaling_run(config: Path, scratch: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", str(config), "--sweep", "micro_batch", "--images", "12"]) == 0
    assert "fastest train.micro_batch" in capsys.readouterr().out
    assert main(["bench", str(config), "--scaling", "1,2", "--images", "12", "--rounds", "1"]) == 0
    assert "2 rank(s): img/s of 2 ranks over the same number of runs of one rank" in capsys.readouterr().out
    assert list(scratch.glob("distgan*")) == []


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers taken out of tensors, and shapes that depend on them."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype is torch.bool
            for x in (args[1] if isinstance(args[1], list) else [])
        )
        if name in self.WAITS or indexed:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def count_syncs(config: Config, monkeypatch: pytest.MonkeyPatch, iterations: int) -> Counter[str]:
    with contextlib.ExitStack() as stack:
        config, world = stack.enter_context(temporary_run(config))
        syncs = stack.enter_context(Syncs())
        with running_trainer(config, world, make_batch_plan(config, 1)) as trainer:
            trainer.train_iteration()
            syncs.found.clear()
            for name in ("cpu", "numpy", "tolist"):  # which on a CPU dispatch nothing
                original = getattr(torch.Tensor, name)

                def counted(self, *args, name=name, original=original):
                    syncs.found[name] += 1
                    return original(self, *args)

                monkeypatch.setattr(torch.Tensor, name, counted)
            for _ in range(iterations):
                trainer.train_iteration()
            found = Counter(syncs.found)
            monkeypatch.undo()
            return found


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["augment.pipe=ada", "augment.instance_noise=0.1", "data.flip=true", "model.dropout=0.2", "train.on_nan=skip"],
        [
            "model.minibatch_layer=stddev",
            "loss.feature_matching=1",
            "train.n_critic=2",
            "loss.gp=10",
            "train.micro_batch=6",
        ],
        ["model.family=r3gan", "model.G.widths=[8]", "model.D.widths=[8]", "train.precision=bf16"],
        [
            "model.family=resnet",
            "model.G.base_channels=4",
            "model.D.base_channels=4",
            "loss.name=wasserstein",
            "loss.weight_clip=0.1",
        ],
    ],
)
def test_the_host_waits_for_nothing_between_two_lines_of_metrics(
    settings: list[str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["train.tick=1M", *settings]
    assert count_syncs(load(str(config), overrides), monkeypatch, 3) == {}


def test_the_count_of_waits_can_fail(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMSprop has no fused form: there the host asks whether a step is to be taken."""
    found = count_syncs(load(str(config), ["train.tick=1M", "optim.D.name=rmsprop"]), monkeypatch, 3)
    assert found == {"_local_scalar_dense": 3}


def test_a_timeline_tells_phases_apart() -> None:
    timeline = Timeline(torch.device("cpu"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    timeline.time_optimizer("optimizer", optimizer)
    for name, seconds in (("one", 0.02), ("two", 0.01), ("one", 0.02)):
        timeline.phase(name)
        time.sleep(seconds)
        optimizer.step()
    found = timeline.pop()
    assert {name: num for name, (_, num) in found.items()} == {"one": 2, "two": 1, "optimizer": 3}
    assert found["one"][0] >= 0.04 and found["two"][0] >= 0.01
    assert found["optimizer"][0] < sum(found[name][0] for name in ("one", "two"))
    assert timeline.pop() == {}


def test_made_up_shards_are_good_ones(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 30, square(16), classes=7)
    found = [shard_index.build(str(path), ByteRangeReader()) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    assert sum(one.summary()["samples"] for one in found) == 30
    assert not any(one.summary()["defects"] for one in found)
    assert np.bincount(np.concatenate([one.label for one in found])).tolist() == [5, 5, 4, 4, 4, 4, 4]


def test_a_measured_run_neither_ends_nor_writes(config: Path, tmp_path: Path) -> None:
    settings = ["train.max_minutes=1", "data.audit=true", "train.images=10", "eval.every=10"]
    found = endless(load(str(config), settings), tmp_path)
    assert found.train.images == found.checkpoint.every == 2**60
    assert found.sample.every == found.eval.every == found.train.max_minutes == 0
    assert (found.data.audit, found.wandb.mode) == (False, "disabled")
