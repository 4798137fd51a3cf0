"""Each way of sending gradients gives all ranks the same ones, and buckets are sent while the backward still runs."""

import json
from pathlib import Path

import pytest
import torch
from processes import WORKERS, output, run_ranks, train
from ranks_sync import LAYERS, SEEN, WIDTH, net
from runs import make_digits, metrics, weights, write_config
from safetensors.torch import load_file

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they found."""
    folder = tmp_path_factory.mktemp("sync")
    command, log = [str(WORKERS / "ranks_sync.py"), str(folder / "out")], folder / "log"
    assert run_ranks(2, command, log) == [0, 0], output(log, 2)
    return folder / "out"


def test_every_way_gives_the_mean_of_the_gradients(out: Path) -> None:
    first, second = (load_file(f"{out}.{rank}") for rank in range(2))
    model, x = net(), torch.randn(SEEN, WIDTH, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward()
    expected = torch.stack([weight.grad for weight in model.parameters()])
    for way, gradient in first.items():
        assert torch.equal(gradient, second[way]), way
        error = ((gradient - expected).norm() / expected.norm()).item()
        assert (1e-3 < error < 6e-3) if "bf16" in way else error < 1e-6, (way, error)  # bf16 rounds to 8 bits
    assert torch.equal(first["small buckets"], first["ddp"])  # a sum of two has one order


def test_buckets_are_sent_while_the_backward_runs(out: Path) -> None:
    for rank in range(2):
        events = [what for what, _ in json.loads(Path(f"{out}.{rank}.json").read_text())]
        sent = [i for i, what in enumerate(events) if what.endswith("is sent")]
        ready = [i for i, what in enumerate(events) if what.endswith("is ready")]
        assert len(ready) == LAYERS
        assert len(sent) >= LAYERS - 1
        before = sum(i < ready[-1] for i in sent)
        assert before >= LAYERS - 2, events  # all but the last ones, while there was work to do beside
        assert events.index("the backward has ended") > max(i for i, what in enumerate(events) if "has come" in what)


@pytest.mark.parametrize("way", ["grad_compression=bf16", pytest.param("sync=flat", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_unbroken_one(way: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    common, log = [str(config), f"train.{way}", "sample.every=0"], tmp_path / "log"
    train(2, log, *common, "train.images=48", f"run.dir={tmp_path}/whole")
    for images in (24, 48):
        train(2, log, *common, f"train.images={images}", f"run.dir={tmp_path}/legs")
    train(2, log, str(config), "sample.every=0", "train.images=48", f"run.dir={tmp_path}/plain")
    whole = weights(tmp_path / "whole")
    assert whole == weights(tmp_path / "legs")
    assert metrics(tmp_path / "whole")[-1] == metrics(tmp_path / "legs")[-1]
    if "bf16" in way:
        assert whole["D.safetensors"] != weights(tmp_path / "plain")["D.safetensors"]
