"""A trained generator in someone else's program: what it gives, and what is told where it cannot be had."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import environment
from runs import untrained
from torch import Tensor, nn

import distgan
from distgan import load_generator
from distgan.errors import ConfigError, DataError
from distgan.inference import exported_folder, loading, sampling, trained_generator
from distgan.inference.export import export
from distgan.models import MODELS, Family
from distgan.storage.checkpoint import load as load_checkpoint
from distgan.storage.checkpoint import save
from distgan.transforms.image_values import to_pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("generator") / "run", "model.G.norm=batch")


def rewritten(run: Path, **changes: object) -> Path:
    """A newer checkpoint of the run, with another state or other tensors."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    tensors, state = load_checkpoint(checkpoint)
    state["config"]["model"] |= changes
    return save(run / "checkpoints", state["images"] + 1, tensors, state)


@pytest.mark.parametrize("revision, told", [(None, "the resampling filter is the authors'"), (3, "a newer version")])
def test_weights_of_another_revision_are_refused(tmp_path: Path, revision: int | None, told: str) -> None:
    """In checkpoints and exports: the same weights mean another function."""
    run = untrained(tmp_path / "run", "model.family=r3gan", "model.G.widths=[8]", "model.D.widths=[8]")
    export(str(run), str(tmp_path / "exported"), "safetensors")
    description = tmp_path / "exported" / exported_folder.DESCRIPTION
    described = json.loads(description.read_text())
    tensors, state = load_checkpoint(max((run / "checkpoints").glob("step-*")))
    for kept in (described["generator"], state):
        kept.pop("revision")
        kept |= {} if revision is None else {"revision": revision}
    description.write_text(json.dumps(described))
    path = save(run / "checkpoints", 2000, tensors, state)
    for where in (path, tmp_path / "exported"):
        with pytest.raises(DataError, match=f"another revision of the r3gan networks.*{told}"):
            load_generator(where, "cpu")


def test_importing_the_package_needs_no_torch() -> None:
    program = "import distgan, sys; assert 'torch' not in sys.modules; assert distgan.__version__"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment())
    assert distgan.load_generator is loading.load_generator
    with pytest.raises(AttributeError, match="no attribute 'load_generators'"):
        distgan.load_generators  # noqa: B018


def test_what_a_caller_passes_is_copied_before_a_call_returns(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy in the background would read pinned latents or images after the caller has written to them."""
    behind: list[int] = []

    def in_the_background(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
        tensor = torch.as_tensor(values)
        behind.append(tensor.data_ptr())
        return tensor.to(device)

    monkeypatch.setattr(trained_generator, "copy_to_device", in_the_background)
    z, pictures = torch.randn(3, 8), torch.rand(2, 3, 16, 16)
    load_generator(run, "cpu")(z)
    restores = untrained(tmp_path / "restore", "model.family=restore", "restore.degrade=[{noise: 25}]")
    load_generator(restores, "cpu", restores=True).restore(pictures)
    assert behind
    assert not {z.data_ptr(), pictures.data_ptr()}.intersection(behind)


def test_images_are_functions_of_seed_and_number(run: Path) -> None:
    before = torch.random.get_rng_state()
    G = load_generator(run, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (G.resolution, G.z_dim, G.num_classes, G.spec.family) == (16, 8, 3, "dcgan")
    images = G(100, seed=5)
    assert (images.shape, images.dtype) == ((100, 3, 16, 16), torch.float32)
    assert not images.requires_grad
    assert torch.equal(images[:7], G(7, seed=5))
    assert torch.equal(images[[70, 99]], G.images([70, 99], seed=5))
    assert not torch.equal(images[:7], G(7, seed=6))
    pictures = list(G.pictures(range(100), seed=5))
    assert np.array_equal(np.stack(pictures), to_pixels(images, G.image))
    z = sampling.latents(5, range(100), 8)
    assert torch.allclose(G(z, [i % 3 for i in range(100)]), images, atol=1e-5)
    assert torch.equal(G(z[:6]), G(z[:6], torch.tensor([0, 1, 2, 0, 1, 2])))
    assert torch.equal(G(6, labels=2)[4], G(6, labels=[0, 0, 0, 0, 2, 0])[4])


def test_the_average_is_what_is_loaded_and_evaluated(run: Path) -> None:
    """Batch norm by its running statistics: an image does not depend on the others of a batch."""
    G = load_generator(run, "cpu")
    tensors, _ = load_checkpoint(next((run / "checkpoints").glob("step-*")))
    assert all(torch.equal(value, tensors["G_ema"][name]) for name, value in G.net.state_dict().items())
    z = torch.randn(4, 8)
    assert torch.allclose(G(z, 1)[:1], G(z[:1], 1), atol=1e-6)
    assert not G.net.training


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda G: G(0), "0 images: ask for 1 or more"),
        (lambda G: G(torch.zeros(2, 9)), r"latents of shape \[2, 9\]: this generator takes \[B, 8\]"),
        (lambda G: G(2, labels=3), "label 3: the classes are 0 to 2"),
        (lambda G: G(2, labels=[0, -1]), "label -1: the classes are 0 to 2"),
        (lambda G: G(torch.zeros(2, 8), [0]), "1 labels for 2 images"),
    ],
)
def test_calls_that_do_not_fit_are_refused(run: Path, call: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call(load_generator(run, "cpu"))


def test_a_generator_without_classes_takes_no_labels(tmp_path: Path) -> None:
    G = load_generator(untrained(tmp_path / "run", "model.conditional=false", classes=0), "cpu")
    assert G(2).shape == G(torch.zeros(2, 8)).shape
    with pytest.raises(ValueError, match="trained without classes"):
        G(2, labels=0)


def test_an_exported_folder_gives_the_same_images(tmp_path: Path, run: Path) -> None:
    export(str(run), str(tmp_path / "out"), "safetensors")
    G, copy = load_generator(run, "cpu"), load_generator(tmp_path / "out", "cpu")
    assert torch.equal(G(70, seed=2), copy(70, seed=2))
    assert (copy.spec, copy.origin) == (G.spec, G.origin)
    with pytest.raises(ConfigError, match="exported generator, which has no discriminator: name its run"):
        loading.load_discriminator(tmp_path / "out", 64)


def test_a_damaged_export_is_refused(tmp_path: Path, run: Path) -> None:
    export(str(run), str(tmp_path / "good"), "safetensors")

    def damaged(name: str, file: str, change: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        (folder / file).write_bytes(change((folder / file).read_bytes()))
        return folder

    def other_family(text: bytes) -> bytes:
        told = json.loads(text)
        told["generator"] |= {"family": "hourglass", "settings": {"base_channels": 8}}
        return json.dumps(told).encode()

    cut = damaged("cut", "model.safetensors", lambda data: data[:-1])
    no_json = damaged("text", "config.json", lambda data: data[:-10])
    foreign = damaged("foreign", "config.json", lambda data: b'{"model_type": "bert"}')
    newer = damaged("newer", "config.json", lambda data: data.replace(b"generator 2", b"generator 3"))
    other = damaged("other", "config.json", other_family)
    gone = damaged("gone", "config.json", lambda data: data)
    (gone / "model.safetensors").unlink()
    for folder, told in (
        (cut, "model.safetensors is not what was written"),
        (no_json, "config.json is not one that `distgan export` wrote"),
        (foreign, "config.json is not one that `distgan export` wrote"),
        (newer, "is of format 'distgan generator 3'; this version reads 'distgan generator 2'"),
        (other, "the weights are not of the network that is described there"),
        (gone, "model.safetensors is missing"),
        (tmp_path / "nothing", "nothing: no such file or folder"),
    ):
        with pytest.raises(DataError, match=told):
            load_generator(folder)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(tmp_path / "run")
    rewritten(run, family="hourglass", G={"base_channels": 8, "embed_dim": 4, "norm": "none"}, D={"base_channels": 8})
    with pytest.raises(DataError, match="the weights are not of the network that is described there"):
        load_generator(run)
    rewritten(run, family="future")
    with pytest.raises(ConfigError, match="of the family 'future', which this version of distgan does not have"):
        load_generator(run)

    class Restores(nn.Module):
        def __init__(self, resolution: int, z_dim: int, num_classes: int) -> None:
            super().__init__()

        def forward(self, image: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
            return image

    monkeypatch.setitem(MODELS, "future", Family(Restores, nn.Identity))
    rewritten(run, G={})
    with pytest.raises(ConfigError, match="'future' take image, z, labels; here they would be given z, labels"):
        load_generator(run)


def test_the_hash_of_a_checkpoint_is_that_of_all_its_files(run: Path) -> None:
    G = load_generator(run, "cpu")
    manifest = next((run / "checkpoints").glob("step-*")) / "manifest.json"
    assert G.origin["sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
