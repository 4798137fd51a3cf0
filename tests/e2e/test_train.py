"""`distgan train` as its user meets it: what it leaves behind, and what it says when something is wrong."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, environment, free_port, output, ranks, run_ranks, wait_for
from runs import make_digits, metrics, status, train, weights, write_config
from shards import write_shards
from torch import Tensor, nn

from distgan.cli.main import main
from distgan.image_spec import square
from distgan.storage.run_dir import RunDir
from distgan.training import pace
from distgan.training.sample_grids import SampleGrids
from distgan.training.schedulers import OptimizerRates, Schedulers
from distgan.transforms.image_values import to_pixels


def test_what_a_run_leaves_behind(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=360") == 0
    assert {p.name for p in run.iterdir() if not p.name.startswith(".")} == {
        "config.yaml", "environment.json", "status.json", "log.txt", "logs", "metrics.jsonl", "samples", "checkpoints",
    }  # fmt: skip
    assert {p.name for p in (run / "samples").iterdir()} == {
        "reals.png",
        "raw.png",
        "worst-reals.png",
        "fakes-000000.000.png",
        "fakes-000000.360.png",
    }
    assert np.asarray(Image.open(run / "samples" / "reals.png")).shape == (2 * 16, 3 * 16, 3)
    found = status(run)
    assert (found["state"], found["images"], found["world"]) == ("finished", 360, 1)
    assert (found["step"], found["total_images"], found["reason"]) == (30, 360, "finished")
    rows = metrics(run)
    assert [row["Progress/images"] for row in rows] == [120, 240, 360]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    for key in (
        "Loss/D",
        "Loss/G",
        "Loss/r1",
        "Logits/real_minus_fake",
        "Logits/sign_real",
        "Optim/lr_G",
        "Progress/epoch",
    ):
        assert key in rows[0]
    assert all(key.count("/") == 1 for key in rows[0])
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        steps_sec = (row["Perf/step_ms_D"] + row["Perf/step_ms_G"]) * 120 / 12 / 1000
        assert 0 < steps_sec <= row["Perf/sec_per_kimg"] * 0.12
    checkpoints = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert checkpoints == ["step-000000000240", "step-000000000360"]
    assert capsys.readouterr().out == (run / "log.txt").read_text()
    assert train(run, run) == 0  # the run folder is a config too
    assert "nothing to do" in capsys.readouterr().out
    before = status(run)
    assert train(run, run, "model.z_dim=3") == 2
    refused = status(run)
    assert refused["state"] == "failed" and "of other networks" in refused["reason"]
    assert all(refused[key] == before[key] for key in ("images", "step", "total_images", "checkpoint"))
    assert train(run, run) == 0
    assert status(run) | {"time": ""} == before | {"time": ""}


def test_lines_of_metrics_come_at_ticks_alone(tmp_path: Path, config: Path) -> None:
    """Neither samples nor checkpoints cut them short, nor does an end that is put off; terms out of use have no key."""
    own = ("loss.penalty_interval=4", "train.tick=144", "sample.every=60", "checkpoint.every=36", "loss.r2=0")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole, "train.images=360", *own) == 0
    rows = metrics(whole)
    assert [row["Progress/images"] for row in rows] == [144, 288, 360]  # the last one is of the run's end
    for row in rows:
        assert {name for name in row if name.startswith("Loss/")} == {
            "Loss/D",
            "Loss/D_adv",
            "Loss/r1",
            "Loss/G",
            "Loss/G_adv",
        }
        assert row["Loss/r1"] > 0
        assert row["Loss/D"] == pytest.approx(row["Loss/D_adv"] + row["Loss/r1"], rel=1e-5)
    assert train(config, parts, "train.images=180", *own) == 0
    assert train(config, parts, "train.images=360", *own) == 0
    assert [row["Progress/images"] for row in metrics(parts)] == [144, 180, 288, 360]
    assert [row for row in metrics(parts) if row["Progress/images"] != 180] == rows
    assert weights(parts) == weights(whole)


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss.name=wasserstein", "loss.gp=10", "train.n_critic=2", "loss.r1=0", "loss.r2=0"),
        ("loss.name=wasserstein", "loss.weight_clip=0.01", "loss.r1=0", "loss.r2=0", "optim.G.name=adamw"),
        ("loss.name=minimax", "loss.r2=0"),
        ("loss.name=hinge", "train.precision=bf16", "loss.penalty_interval=1"),
        ("loss.name=lsgan", "model.conditional=false", "train.micro_batch=3"),
        ("loss.name=non_saturating", "model.D.norm=batch", "model.G.norm=batch", "loss.r1=0", "loss.r2=0"),
        (
            "ema.half_life=0",
            "optim.warmup=60",
            "optim.G.lr=[1e-3,1e-4]",
            "train.schedule_images=100",
            "train.schedule_shape=linear",
        ),
        ("data.resolution=32",),
    ],
)
def test_every_choice_trains(tmp_path: Path, config: Path, overrides: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=120", "checkpoint.every=60", *overrides) == 0
    assert status(run)["state"] == "finished"
    if "loss.weight_clip=0.01" in overrides:
        from distgan.storage.checkpoint import load
        from distgan.storage.checkpoint_folder import find

        assert max(t.abs().max().item() for t in load(find(run))[0]["D"].values()) <= 0.01


def test_schedules_stand_where_the_iteration_began(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each D step at its own images, for G's step and the average at those of the first: as the authors' loops."""
    seen: list[tuple[str, int]] = []
    rates, ema_decay = Schedulers.lr_and_betas, Schedulers.ema_decay

    def noted(self: Schedulers, net: str, images: int) -> OptimizerRates:
        seen.append((net, images))
        return rates(self, net, images)

    def decay(self: Schedulers, images: int, step_images: int) -> float:
        seen.append(("average", images))
        assert step_images == 24
        return ema_decay(self, images, step_images)

    monkeypatch.setattr(Schedulers, "lr_and_betas", noted)
    monkeypatch.setattr(Schedulers, "ema_decay", decay)
    monkeypatch.setattr(Schedulers, "row", lambda self, images: {})
    more = ("train.n_critic=2", "train.images=48", "sample.every=0", "ema.ramp_up=0.1")
    assert train(config, tmp_path / "run", *more) == 0
    assert seen == [(net, at + d) for at in (0, 24) for net, d in (("D", 0), ("D", 12), ("G", 0), ("average", 0))]
    assert metrics(tmp_path / "run")[-1]["Progress/ema_beta"] == pytest.approx(0.5 ** (24 / 2.4))


def test_values_that_are_not_finite_end_the_run_with_the_cause(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=240") == 0
    good = weights(run)
    broken = ("optim.G.lr=1e30", "optim.D.lr=1e30", "run.allow_config_change=true", "train.images=600")
    assert train(config, run, *broken) == 4
    told = capsys.readouterr().err
    assert "after 360 images: " in told
    assert "not finite: " in told
    assert "step-000000000240" in told
    assert status(run)["state"] == "failed"
    assert "DivergedError" in status(run)["reason"]
    assert weights(run) == good


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    run, own = tmp_path / "run", ("train.images=240", "checkpoint.every=120")
    assert train(config, run, *own) == 0
    expected = weights(run)
    path = run / "checkpoints" / "step-000000000240" / "opt_D.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert train(config, run, *own) == 0
    told = capsys.readouterr().out
    assert "skipping a corrupt checkpoint: step-000000000240: opt_D.safetensors is not what was written" in told
    assert "resuming from" in told
    assert weights(run) == expected


def test_other_settings_or_other_data_are_refused_unless_allowed(
    tmp_path: Path, config: Path, digits: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=120") == 0
    assert train(config, run, "train.images=240", "train.seed=9") == 2
    assert "train.seed was 0, is 9" in capsys.readouterr().err
    assert train(config, run, "train.images=240", "model.G.base_channels=16", "run.allow_config_change=true") == 2
    assert "the checkpoint is of other networks: model.G.base_channels was 8, is 16" in capsys.readouterr().err
    other = shutil.copytree(digits, tmp_path / "other")
    assert train(config, run, "train.images=240", f"data.shards={other}") == 0  # the same data elsewhere
    (other / "000000.tar").unlink()
    assert train(config, run, "train.images=360", f"data.shards={other}") == 3
    assert "run.allow_data_change=true" in capsys.readouterr().err
    assert train(config, run, "train.images=360", f"data.shards={other}", "run.allow_data_change=true") == 0


def test_a_run_can_begin_at_another_run_s_checkpoint(tmp_path: Path, config: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(config, first, "train.images=120") == 0
    assert train(config, second, "train.images=240", f"run.resume={first}") == 0
    assert train(config, first, "train.images=240") == 0
    assert weights(first) == weights(second)
    assert train(config, first, "run.resume=never") == 2


@pytest.mark.parametrize(
    ("overrides", "code", "told"),
    [
        (("data.shards=/nowhere/*.tar",), 3, "data.shards: no shard matches '/nowhere/*.tar'"),
        (("train.batch=4096",), 3, "the data set has 1797 samples, fewer than train.batch=4096"),
        (("data.shards=pipe:cat x",), 3, "if you trust it, write data.allow_pipe=true on the command line"),
        (("data.classes=5",), 3, "is outside of data.classes=5"),
        (("train.batchh=4",), 2, "Did you mean: 'batch'?"),
    ],
)
def test_what_cannot_run_is_told_in_a_line(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, overrides: tuple[str, ...], code: int, told: str
) -> None:
    assert train(config, tmp_path / "run", *overrides) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_dry_run_and_check_tell_the_plan_and_write_nothing(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    for command in (["train", str(config), "--dry-run"], ["check", str(config), "--ranks", "3"]):
        assert main([*command, f"run.dir={tmp_path / 'run'}"]) == 0
        told = capsys.readouterr().out
        ranks = 3 if "check" in command else 1
        assert f"batch: 12 images = {ranks} rank(s) x 1 pass(es) x {12 // ranks}" in told
        assert "1,797 images of 10 classes in" in told
        assert "MB at most for 3 checkpoint(s)" in told
    assert not (tmp_path / "run").exists()
    assert main(["check", str(config), "--ranks", "5"]) == 2
    assert "use 1, 2, 3, 4 or 6 ranks, or train.batch=10 or 15" in capsys.readouterr().err


LARGE = (  # seconds to minutes each; of each family, another one is tried always
    "restore128.yaml",
    "r3gan-256.yaml",
    "r3gan-ffhq64.yaml",
    "hourglass128-small.yaml",
    "dcgan128-wgan-gp.yaml",
    "stylegan2-256.yaml",
    "stylegan2-1024.yaml",
)
SHIPPED = [
    pytest.param(path, id=path.name, marks=pytest.mark.slow if path.name in LARGE else ())
    for path in sorted((ROOT / "configs").glob("*.yaml"))
]


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_config_takes_a_step(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a reduced size: few channels, and as few images as make a step."""
    from distgan.config.load import load

    monkeypatch.setenv("WANDB_MODE", "disabled")
    full = load(str(path))
    shards = make_digits(tmp_path / "data", resolution=full.data.resolution if full.data.resolution <= 64 else 64)
    small = [
        "train.batch=2",
        "train.micro_batch=0",
        "data.shuffle_lanes=0",
        f"data.shards={shards}",
        "train.n_critic=1",
        "model.minibatch_group_size=0",
    ]
    narrow = {"base_channels": 4, "max_channels": 8, "widths": [8], "channel_base": 64, "w_dim": 8}
    small += [f"model.{net}.{key}={narrow[key]}" for net in "GD" for key in getattr(full.model, net) if key in narrow]
    overrides = [*small, "train.images=4", "sample.rows=1", "sample.columns=2"]
    assert train(path, tmp_path / "run", *overrides) == 0
    assert path.read_text().startswith("# ")


def test_generate_writes_what_it_is_asked_for(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=120") == 0
    assert main(["generate", str(run), "--num", "20", "--out", str(tmp_path / "png"), "--labels", "3,7-8"]) == 0
    files = sorted(p.relative_to(tmp_path / "png") for p in (tmp_path / "png").rglob("*.png"))
    assert len(files) == 20
    assert {p.parent.name for p in files} == {"003", "007", "008"}
    assert main(["generate", str(run), "--num", "30", "--as", "grid", "--out", str(tmp_path / "g.png")]) == 0
    assert np.asarray(Image.open(tmp_path / "g.png")).shape == (10 * 16, 3 * 16, 3)  # a row for each class
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert main(["generate", str(checkpoint), "--num", "1", "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    for arguments, told in (
        (["--num", "0"], "--num 0: at least 1"),
        (["--labels", "10"], "the classes are 0 to 9"),
        (["--labels", "cats"], "--labels cats: write class numbers as 0,3,7 or 0-9, of 0 to 9; names are not known"),
        (["--labels", "0-99999999999"], "the classes are 0 to 9"),
        (["--columns", "-3"], "--columns -3: at least 1"),
        (["--columns", "0", "--as", "grid"], "--columns 0: at least 1"),
        (["--as", "grid", "--out", str(tmp_path)], "is a folder, a grid is one file"),
        (["--out", str(tmp_path / "g.png")], "is a file"),
    ):
        assert main(["generate", str(run), "--out", str(tmp_path / "x"), *arguments]) == 2
        assert told in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "--out", str(tmp_path / "x")]) == 3


def test_damaged_samples_are_listed_once_whatever_happens(tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    write_shards(shards, [120, 120], damaged=[7, 200])
    config = write_config(tmp_path / "tiny.yaml", shards)
    for images in (360, 720):
        assert (
            train(config, run, f"train.images={images}", "data.max_corrupt_fraction=0.02", "wandb.mode=disabled") == 0
        )
    listed = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((Path(row["shard"]).name, row["key"]) for row in listed) == [
        ("000.tar", "000007"),
        ("001.tar", "000200"),
    ]
    assert all("corrupt" in row["reason"] for row in listed)
    assert (run / "log.txt").read_text().count("another takes its place") == 2
    assert sum(row["Data/replaced"] for row in metrics(run)) == 6  # two of 240 samples, three times


@pytest.mark.parametrize("where", ["add_metrics", "write_config", "_note_environment"])
def test_a_full_disk_is_told_wherever_it_is_met(
    where: str, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Also where the status cannot be written any more."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    status, told = RunDir.write_status, []
    monkeypatch.setattr(RunDir, where, full)
    monkeypatch.setattr(
        RunDir, "write_status", lambda *a, **k: full() if a[1] == "failed" else told.append(status(*a, **k))
    )
    assert train(config, tmp_path / "run", "train.images=240") == 5
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error


def test_files_of_a_run_that_others_spoiled_do_not_end_it(tmp_path: Path, config: Path) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=120") == 0
    (run / "environment.json").write_text("[]")
    (run / "status.json").write_text("[]")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe\n")
    assert train(config, run, "train.images=240") == 0
    assert [row["Progress/images"] for row in metrics(run)] == [120, 240]


@pytest.mark.multi
def test_a_second_live_run_in_one_folder_is_refused(tmp_path: Path, config: Path) -> None:
    run = tmp_path / "run"
    command = ["-m", "distgan", "train", str(config), f"run.dir={run}", "train.images=10M"]
    with ranks(1, command, tmp_path / "first") as (first,):
        wait_for((run / "metrics.jsonl").exists)
        first.send_signal(signal.SIGSTOP)  # it keeps the folder, and leaves the processor to the other one
        assert run_ranks(1, command, tmp_path / "second") == [5]
    assert "is in use by a live run (process" in (tmp_path / "second.0").read_text()


@pytest.mark.multi
def test_a_rank_whose_data_fail_ends_the_others_and_tells_why(tmp_path: Path) -> None:
    """No rank waits for one that is gone, and the message of the one that failed is among those that are shown."""
    shards, run, log = tmp_path / "shards", tmp_path / "run", tmp_path / "log"
    write_shards(shards, [240], damaged=range(0, 240, 40))  # 6, of which 1 % may be
    config = write_config(tmp_path / "tiny.yaml", shards)
    codes = run_ranks(2, ["-m", "distgan", "train", str(config), f"run.dir={run}", "train.images=10M"], log, 60)
    told = output(log, 2)
    assert 3 in codes, told
    assert 0 not in codes
    assert re.search(r"distgan train: rank [01]: .* corrupt", told)
    assert "Traceback" not in told
    assert status(run)["state"] == "failed"


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]


@pytest.mark.multi
@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        ([*LAUNCH, "--cpu", "--num_processes", "2", "--dynamo_backend", "no"], {}, "starts a single process"),
        pytest.param([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"], {},
                     "each would train alone", marks=pytest.mark.slow),
        pytest.param([*LAUNCH, "--multi_gpu", "--num_processes", "2", "--dynamo_backend", "inductor"],
                     {"ACCELERATE_USE_CPU": "true"}, "breaks gradient penalties", marks=pytest.mark.slow),
    ],
    ids=["accelerate --cpu", "torchrun without a word on the CPU", "dynamo"],
)  # fmt: skip
def test_launches_that_are_not_what_they_seem_are_refused(
    tmp_path: Path, config: Path, command: list[str], variables: dict[str, str], told: str
) -> None:
    port = ["--main_process_port" if "accelerate" in command[2] else "--master_port", str(free_port())]
    arguments = ["-m", "distgan", "train", str(config), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, *port, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert told in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.multi
def test_the_cpu_launcher_starts_two_ranks(tmp_path: Path, config: Path) -> None:
    run = tmp_path / "run"
    script = [str(ROOT / "launch" / "cpu.sh"), str(config), f"run.dir={run}", "train.images=240"]
    done = subprocess.run(
        script, env=environment(PYTHON=sys.executable), capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(run)["world"] == 2
    assert "2 rank(s) x 1 pass(es) x 6" in done.stdout
    assert done.stdout.count("finished at 240 images") == 1
    mistake = subprocess.run(
        [*script, "train.batchh=3"], env=environment(PYTHON=sys.executable), capture_output=True, text=True, timeout=120
    )
    assert mistake.stderr.count("Did you mean: 'batch'?") == 1  # told once, not by every rank


def test_wandb_gets_rows_and_pictures_offline(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert train(config, run, "train.images=240", "wandb.mode=offline", "wandb.tags=[a]") == 0
    (folder,) = (run / "wandb").glob("offline-run-*")
    told = (run / "log.txt").read_text()
    assert f"wandb: offline. View: wandb leet {folder}" in told
    read = subprocess.run(
        [shutil.which("wandb", path=str(Path(sys.executable).parent)), "leet", "inspect", "--json", str(folder)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    text = read.stdout
    assert "Samples/fakes_ema" in text
    assert "Samples/reals" in text
    assert "Loss/D" in text
    images = sorted((folder / "files" / "media" / "images" / "Samples").glob("*.jpg"))
    assert len(images) == 5  # at the start; at the end; the raw generator's; real ones, and the worst of them
    grid = np.asarray(Image.open(run / "samples" / "reals.png")).astype(int)
    sent = min((np.asarray(Image.open(path)).astype(int) for path in images), key=lambda a: np.abs(a - grid).mean())
    assert np.abs(sent - grid).mean() < 3  # no black picture, no second rescaling
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_the_worst_real_images_come_first(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = SampleGrids.log_worst_reals

    def judged(self: SampleGrids, G: nn.Module, D: nn.Module, reals: Tensor, *scores: Tensor) -> None:
        original(self, G, D, reals, *scores)
        seen.append((reals, scores[0]))

    monkeypatch.setattr(SampleGrids, "log_worst_reals", judged)
    assert train(config, tmp_path / "run", "train.images=120", "sample.every=120", "wandb.histograms=true") == 0
    ((reals, scores),) = seen
    picture = np.asarray(Image.open(tmp_path / "run" / "samples" / "worst-reals.png"))
    assert len(scores) == 12
    for place, number in enumerate(scores.argsort().tolist()[:6]):
        top, left = place // 3 * 16, place % 3 * 16
        assert (picture[top : top + 16, left : left + 16] == to_pixels(reals[number : number + 1], square(16))[0]).all()


def test_load_of_nodes_is_logged_where_it_is_asked_for(tmp_path: Path, config: Path) -> None:
    assert train(config, tmp_path / "run", "train.images=120", "run.log_system_metrics=true") == 0
    assert "System/node0_cpu_pct" in metrics(tmp_path / "run")[0]


def test_a_run_whose_first_step_is_slow_says_what_to_expect(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SLOW_SEC", 0)
    assert train(config, tmp_path / "run", "train.images=120") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("the first 12 images took")]
    assert line.endswith("; on a CPU, start with one of configs/*-small.yaml")


def test_a_start_from_nothing_after_another_is_told(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train(config, run, "train.images=120") == 0
    shutil.rmtree(run / "checkpoints")
    assert train(config, run, "train.images=120") == 0
    assert "the previous start reached 120 images but saved no checkpoint" in capsys.readouterr().out
