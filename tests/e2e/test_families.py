"""Every family of networks in real runs: on two ranks, in bf16, and taken up again."""

from pathlib import Path

import pytest
from processes import WORKERS, output, run_ranks
from runs import make_digits, metrics, train, weights, write_config


@pytest.mark.multi
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("pairs", "bf16"), [("some", "0"), *(pytest.param("all", bf16, marks=pytest.mark.slow) for bf16 in "01")]
)
def test_every_family_with_every_loss_keeps_two_ranks_equal(tmp_path: Path, pairs: str, bf16: str) -> None:
    """Half of the pairs in bf16, the other half in float32; in slow tests all pairs, also the other way round."""
    command = [str(WORKERS / "ranks_families.py"), pairs, bf16]
    assert run_ranks(2, command, tmp_path / "log", timeout=180) == [0, 0], output(tmp_path / "log", 2)


OWN = {
    "r3gan": [
        "data.resolution=16",
        "model.G.widths=[8]",
        "model.D.widths=[8]",
        "loss.name=rpgan",
        "optim.D.beta2=[0.9,0.99]",
    ],
    "resnet": [
        "model.G={base_channels: 8, norm: conditional}",
        "model.D={base_channels: 8}",
        "loss.name=hinge",
        "loss.r1=0",
        "loss.r2=0",
    ],
    "hourglass": [
        "model.G.base_channels=4",
        "model.D={base_channels: 4, norm: none}",
        "loss.name=wasserstein",
        "loss.gp=10",
        "train.n_critic=2",
    ],
    "stylegan2": [
        "data.resolution=16",
        "model.G={channel_base: 64, w_dim: 16, mapping_layers: 2}",
        "model.D={channel_base: 64, mapping_layers: 2}",
        "model.minibatch_layer=stddev",
        "model.minibatch_group_size=4",
        "loss={name: non_saturating, r1: 1, penalty_interval: 4, path_length: 2, path_length_interval: 2}",
    ],
    "restore": [
        "model.G={base_channels: 8, max_channels: 16, skips: true, residual: true, noise: true}",
        "model.D={base_channels: 8, max_channels: 16, paired: true, patches: 8}",
        "restore={degrade: [{blur: [0.5, 1]}, {noise: [5, 30], p: 0.5}, {jpeg: 50}], pixel_weight: 10}",
        "loss={name: non_saturating, feature_matching: 1}",
        "augment={pipe: diffaugment, p: 0.3}",
        "data={flip: true, holdout: 20}",
        "sample={every: 36, columns: 6}",
    ],
    "dcgan": [
        "model.minibatch_layer=discrimination",
        *(f"model.{net}={{base_channels: 8, max_channels: 16}}" for net in "GD"),
        "model.dropout=0.2",
        "model.minibatch_group_size=4",
        "loss={name: non_saturating, feature_matching: 1, label_smoothing: 0.1}",
        "augment={pipe: ada, target: 0.6, speed: 2k, interval: 24, instance_noise: [0.2, 0]}",
        "balance={adapt: d_lr, every: 24}",
        "data.flip=true",
    ],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    path = write_config(folder / "tiny.yaml", make_digits(folder / "digits", resolution=32), resolution=32)
    text = path.read_text()
    path.write_text(
        text.replace("  G: {base_channels: 8, max_channels: 16}\n  D: {base_channels: 8, max_channels: 16}\n", "")
    )
    return path


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_in_two_parts_is_one_in_a_piece(tmp_path: Path, config: Path, family: str, precision: str) -> None:
    own = [f"model.family={family}", "sample.every=0", *OWN[family], f"train.precision={precision}", "train.tick=36"]
    assert train(config, tmp_path / "whole", *own, "train.images=72") == 0
    for images in ("48", "72"):
        assert train(config, tmp_path / "parts", *own, f"train.images={images}") == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "parts")[-1] == metrics(tmp_path / "whole")[-1]
