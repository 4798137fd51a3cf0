"""What comes from elsewhere starts no process and gives itself no rights: configs, checkpoints, pictures."""

import hashlib
import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import make_digits, untrained, write_config
from shards import image_bytes, numbered_pixels, tar_bytes

from distgan.cli.main import main
from distgan.config.load import from_dict, load, load_to_evaluate
from distgan.data.decode import decode
from distgan.data.image_format import FORMATS, CorruptImage
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
started: list[str] = []
sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)


@pytest.fixture
def nothing_starts() -> None:
    started.clear()
    yield
    assert started == []


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


def forge(checkpoint: Path, **changes: dict) -> Path:
    """Alter the config in a checkpoint, as who knows how its hashes are made."""
    state = json.loads((checkpoint / "state.json").read_text())
    for section, values in changes.items():
        state["config"][section] |= values
    data = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return checkpoint


def piped(marker: Path) -> dict:
    return {"shards": [f"pipe:touch '{marker}'; cat /dev/null"], "allow_pipe": True}


def test_a_checkpoint_from_elsewhere_runs_no_command(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture, nothing_starts: None
) -> None:
    run = untrained(tmp_path / "run")
    checkpoint = forge(run / "checkpoints" / "step-000000001000", data=piped(marker))
    generate = ["generate", str(checkpoint), "--num", "4", "--out"]
    commands = (
        ["evaluate", str(checkpoint), "eval.extractor=toy", "eval.num_images=32"],
        [*generate, str(tmp_path / "o"), "--keep-best", "0.5", "--filter-by", "nearest-real"],
        [*generate, str(tmp_path / "p")],
        ["export", str(checkpoint), str(tmp_path / "exported")],
    )
    codes = [main(command) for command in commands]
    assert codes[0] == 2  # who evaluates is asked for the right that the file wanted to give itself
    assert codes[1] in (2, 3)  # where the extractor's weights are missing, that is told first
    assert codes[2:] == [0, 0]
    assert not marker.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_no_file_can_allow_commands(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, base = tmp_path / "c.yaml", tmp_path / "base.yaml"
    base.write_text("data: {allow_pipe: true}\n")
    for text in (
        "data: {allow_pipe: true, shards: x, resolution: 8}",
        "base: base.yaml\ndata: {shards: x, resolution: 8}",
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"data\.allow_pipe=True: a file cannot set it: write"):
            load(str(file))
        assert load(str(file), ["data.allow_pipe=true"]).data.allow_pipe
        with monkeypatch.context() as own:
            own.setenv("DISTGAN_ALLOW_PIPE", "1")
            assert load(str(file)).data.allow_pipe
    file.write_text("data: {allow_pipe: false, shards: x, resolution: 8}")
    assert not load(str(file)).data.allow_pipe
    assert not from_dict({"data": piped(marker)}).data.allow_pipe
    with pytest.raises(ConfigError, match="a file cannot set it"):
        load_to_evaluate([("checkpoint", {"data": piped(marker)})], [])


def test_check_and_a_dry_run_run_no_command(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_config(tmp_path / "c.yaml", Path("unused"))
    own = [str(file), f"data.shards=pipe:touch '{marker}'", "data.allow_pipe=true", f"run.dir={tmp_path / 'run'}"]
    for words in (["check", *own], ["train", "--dry-run", *own], ["train", *own[:2], f"run.dir={tmp_path / 'run'}"]):
        assert main(words) == 3
        assert "runs a command in a shell" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x${oc.env:AWS_SECRET}y", "${model.z_dim}"])
def test_what_a_run_saved_has_nothing_to_fill_in(text: str, tmp_path: Path) -> None:
    altered = (
        {"data": {"shards": [f"http://host/{text}.tar"]}},
        {"model": {"family": text}},
        {"model": {"G": {text: 1}}},
    )
    for values in altered:
        with pytest.raises(ConfigError, match="this one was altered"):
            from_dict(values)
        with pytest.raises(ConfigError, match="this one was altered"):
            load_to_evaluate([("checkpoint", values)], [])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {{shards: x, resolution: 8}}\nwandb: {{notes: '{text}'}}\n")
    with pytest.raises(ConfigError, match="this one was altered"):
        load(str(run))


def test_of_the_environment_a_config_reads_named_harmless_variables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    for name in ("SLURM_JWT", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SLURM_", "slurm_job_id", "SLURM_JOB_ID2"):
        monkeypatch.setenv(name, "CANARY")
        for key in ("wandb: {notes: X}", "model: {G: {base_channels: X}}", "train: {seed: X}"):
            file.write_text("data: {shards: x, resolution: 8}\n" + key.replace("X", f"'${{oc.env:{name}}}'"))
            with pytest.raises(ConfigError, match="may not read the environment variable") as caught:
                load(str(file))
            assert "CANARY" not in str(caught.value)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    file.write_text("data: {shards: x, resolution: 8}\nwandb: {notes: '${oc.env:SLURM_JOB_ID}'}")
    assert load(str(file)).wandb.notes == "17"


def test_shards_read_no_environment_by_any_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_TOKEN", "CANARY")
    for spec in (
        "http://host/{$,x}{TOKEN}",
        "http://host/${TOKEN}.tar",
        "http://host/$TOKEN",
        "http://host/{a,$}{TOKEN}",
    ):
        assert not any("CANARY" in url for url in find_shards(spec))


def test_only_named_formats_of_pictures_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Path, nothing_starts: None
) -> None:
    """A program named gs, where Pillow would look for Ghostscript, is never started, whatever a picture is named."""
    program, record = tmp_path / "bin" / "gs", tmp_path / "gs was started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{record}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    Image.init()
    unknown = set(Image.OPEN) - set(FORMATS)
    assert "EPS" in unknown
    for data in (POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + POSTSCRIPT):
        with pytest.raises(CorruptImage, match="not an image"):
            decode(data)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(POSTSCRIPT)
    (folder / "dog.png").write_bytes(image_bytes(numbered_pixels(1)))
    assert main(["pack", str(folder), str(tmp_path / "packed"), "--workers", "1"]) == 0
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_bytes({"a.png": POSTSCRIPT, "b.png": image_bytes(numbered_pixels(2))}))
    assert main(["pack", str(shard), str(tmp_path / "repacked"), "--workers", "1"]) == 0
    run = untrained(tmp_path / "run")
    (run / "samples").mkdir()
    (run / "samples" / "reals.png").write_bytes(POSTSCRIPT)
    (run / "metrics.jsonl").write_text("")
    main(["report", str(run)])
    assert not record.exists()


@pytest.mark.parametrize("name", sorted({"PCX", "TGA", "ICO", "SGI", "SPIDER", "IM"} & set(Image.SAVE or {"PCX": 1})))
def test_other_formats_count_as_no_image(name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).convert("F" if name == "SPIDER" else "RGB").save(file, name)
    with pytest.raises(CorruptImage, match="not an image"):
        decode(file.getvalue())


def test_a_command_that_fails_is_told_without_its_words(own_cache: Path) -> None:
    with pytest.raises(DataError, match="pipe:") as caught:
        find_shards("pipe:echo CANARY; exit 3", allow_pipe=True)
    assert "CANARY" not in str(caught.value)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]
