"""Checkpoints: complete or absent, hashed, and never the death of an older one."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distgan.errors import ConfigError, DataError, DivergedError, MachineError
from distgan.storage import checkpoint, checkpoint_folder


def tensors(value: float = 1.0) -> checkpoint.Tensors:
    return {"G": {"w": torch.full((4, 3), value), "b": torch.arange(3.0)}, "opt_G": {"w/step": torch.tensor(7.0)}}


def save(folder: Path, images: int, value: float = 1.0, resume: str = "auto") -> Path:
    state = {"images": images, "num_classes": 0, "config": {"run": {"resume": resume}}}
    return checkpoint.save(folder, images, tensors(value), state)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1000, 2.5)
    found, state = checkpoint.load(path)
    assert state == {"images": 1000, "num_classes": 0, "config": {"run": {"resume": "auto"}}}
    for name, named in tensors(2.5).items():
        assert named.keys() == found[name].keys()
        assert all(torch.equal(named[key], found[name][key]) for key in named)
    assert torch.equal(load_file(path / "G.safetensors")["w"], torch.full((4, 3), 2.5))  # as any other tool reads it
    assert json.loads((tmp_path / "latest.json").read_text())["checkpoint"] == path.name


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    names = {p.name for p in save(tmp_path, 1).iterdir()}
    assert {name.rpartition(".")[2] for name in names} == {"safetensors", "json"}


@pytest.mark.parametrize("file", ["G.safetensors", "opt_G.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path, file: str, damage: str) -> None:
    old, new = save(tmp_path, 1000), save(tmp_path, 2000)
    path = new / file
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(checkpoint.CorruptCheckpointError):
        checkpoint.load(new)
    found, refused = checkpoint_folder.newest_good(tmp_path)
    assert found == old
    assert len(refused) == 1
    assert refused[0].startswith(new.name)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_checkpoint_that_is_half_deleted_is_passed_over(tmp_path: Path, left: int) -> None:
    old, new = save(tmp_path, 1000), save(tmp_path, 2000)
    for path in sorted(new.iterdir())[left:]:
        path.unlink()
    found, refused = checkpoint_folder.newest_good(tmp_path)
    assert found == old
    assert len(refused) == 1
    assert refused[0].startswith(f"{new.name}: ")


@pytest.mark.parametrize("text", ["null", "[]", '{"state.json": 3}', '{"state.json": {}}', '"x"'])
def test_a_manifest_of_another_form_is_damage(text: str, tmp_path: Path) -> None:
    old, new = save(tmp_path, 1000), save(tmp_path, 2000)
    (new / "manifest.json").write_text(text)
    assert checkpoint_folder.newest_good(tmp_path)[0] == old


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "step-abc").mkdir(parents=True)
    for images in (1, 2, 3):
        save(tmp_path, images)
    checkpoint_folder.prune(tmp_path, 1, 0)
    assert [path.name for path in checkpoint_folder.newest_first(tmp_path)] == ["step-000000000003"]


def test_a_save_that_fails_leaves_the_older_ones_and_no_trash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(tmp_path, 1000)
    real = os.fsync

    def full(descriptor: int) -> None:
        if (tmp_path / ".step-000000002000.part" / "opt_G.safetensors").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="the disk is full; the older checkpoints are good"):
        save(tmp_path, 2000)
    assert checkpoint_folder.newest_good(tmp_path) == (old, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", old.name]


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save(tmp_path, 1000)
    with pytest.raises(DivergedError, match=r"G.w is not finite after 2000 images"):
        save(tmp_path, 2000, float("nan"))
    assert [p.name for p in checkpoint_folder.newest_first(tmp_path)] == ["step-000000001000"]


def test_a_killed_save_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".step-000000000500.part").mkdir()
    save(tmp_path, 1000)
    checkpoint_folder.prune(tmp_path, keep_last=3, keep_every=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step-000000001000"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(2, 0, [90, 100]), (1, 30, [30, 60, 90, 100]), (3, 25, [30, 50, 80, 90, 100]), (20, 0, list(range(10, 101, 10)))],
)
def test_retention(tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]) -> None:
    for images in range(10, 101, 10):
        save(tmp_path, images)
        checkpoint_folder.prune(tmp_path, keep_last, keep_every)
    assert [int(p.name[5:]) for p in checkpoint_folder.newest_first(tmp_path)][::-1] == kept


def test_where_a_run_goes_on_from(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other" / "checkpoints"
    elsewhere = save(other, 700)
    assert checkpoint_folder.choose(run, "auto") == (None, True)
    assert checkpoint_folder.choose(run, "never") == (None, False)
    assert checkpoint_folder.choose(run, str(elsewhere)) == (elsewhere, False)
    assert checkpoint_folder.choose(run, str(tmp_path / "other")) == (elsewhere, False)  # a run folder means its newest
    first, second, third = (save(run, images) for images in (100, 200, 300))
    assert checkpoint_folder.choose(run, "auto") == (third, True)
    assert checkpoint_folder.choose(run, str(elsewhere)) == (third, True)  # the same command, again
    with pytest.raises(ConfigError, match=r"choose another run\.dir"):
        checkpoint_folder.choose(run, "never")
    assert checkpoint_folder.choose(run, str(second)) == (second, True)  # back to there
    checkpoint_folder.set_aside_newer(run, third, "auto")
    assert checkpoint_folder.choose(run, "auto") == (third, True)  # nothing was changed so far
    checkpoint_folder.set_aside_newer(run, second, str(second))
    assert checkpoint_folder.choose(run, "auto") == (second, True)
    assert (run / "aside-1-step-000000000300").is_dir()
    third = save(run, 300, resume=str(second))
    assert checkpoint_folder.choose(run, str(second)) == (third, True)  # the same command goes on
    checkpoint_folder.set_aside_newer(run, third, str(second))
    assert not (run / "aside-2-step-000000000300").exists()
    save(run, 300)
    assert checkpoint_folder.choose(run, str(second)) == (second, True)  # back once more, after another one
    checkpoint_folder.set_aside_newer(run, second, str(second))
    assert (run / "aside-2-step-000000000300").is_dir()
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        checkpoint_folder.choose(run, str(tmp_path / "nowhere"))
    for path in (first, second):
        (path / "G.safetensors").unlink()
    with pytest.raises(DataError, match="no good checkpoint left"):
        checkpoint_folder.choose(run, "auto")


def test_what_a_path_means(tmp_path: Path) -> None:
    run, empty, new = tmp_path / "run", tmp_path / "empty", tmp_path / "new"
    save(run / "checkpoints", 100)
    newest = save(run / "checkpoints", 200)
    (new / "checkpoints").mkdir(parents=True)
    (new / "config.yaml").write_text("")
    empty.mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (run, run / "checkpoints", newest):
        assert checkpoint_folder.find(path) == newest
    for path, told in (
        (tmp_path / "nowhere", "no such file or folder"),
        (new, "no checkpoint yet: the first one is written after checkpoint.every images"),
        (new / "checkpoints", "no checkpoint yet"),
        (empty, "neither a run folder, nor a checkpoint, nor a folder that `distgan export` wrote"),
        (tmp_path / "file", "neither a run folder"),
    ):
        with pytest.raises(DataError, match=f"^{path}: {told}"):
            checkpoint_folder.find(path)
    for name in ("100", "200"):
        (run / "checkpoints" / f"step-{name:0>12}" / "G.safetensors").unlink()
    with pytest.raises(DataError, match=r"no good checkpoint there; step-0*200: G\.safetensors is missing; step"):
        checkpoint_folder.find(run)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1))

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for i in numbers:
            torch.manual_seed(100 + i)
            optimizer.zero_grad()
            module(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    whole, first, second = net(), net(), net()
    optimizers = [kind(module.parameters(), lr=1e-2, fused=True) for module in (whole, first, second)]
    steps(whole, optimizers[0], range(6))
    steps(first, optimizers[1], range(3))
    saved = {"net": first.state_dict(), "opt": checkpoint.optimizer_tensors(optimizers[1], first)}
    found, _ = checkpoint.load(checkpoint.save(tmp_path, 1, saved, {"images": 1, "num_classes": 0, "config": {}}))
    second.load_state_dict(found["net"])
    checkpoint.load_optimizer(optimizers[2], second, found["opt"])
    steps(second, optimizers[2], range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))
