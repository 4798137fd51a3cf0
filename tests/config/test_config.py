"""From YAML and overrides to a config: layers, units, and the text of every mistake a user is likely to make."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distgan.config.batch_plan import BatchPlan, divisors, make_batch_plan
from distgan.config.load import from_dict, load, to_yaml
from distgan.config.records import changes, to_dict
from distgan.config.validate import warnings
from distgan.errors import ConfigError

BASIC = "data: {shards: /data/faces, resolution: 64}\n"


@pytest.fixture
def basic(tmp_path: Path) -> Path:
    path = tmp_path / "faces.yaml"
    path.write_text(BASIC)
    return path


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(path), overrides)
    return str(caught.value)


def test_defaults_file_and_overrides_in_that_order(basic: Path) -> None:
    config = load(str(basic), ["train.batch=16", "optim.G.lr=1e-4", "data.shards=/p/{000..099}.tar"])
    assert (config.train.batch, config.optim.G.lr, config.optim.D.lr) == (16, [1e-4], [2e-4])
    assert config.data.shards == ["/p/{000..099}.tar"]
    assert config.run.dir == "runs/faces"


def test_an_automatic_range_is_an_empty_one(basic: Path) -> None:
    assert load(str(basic), ["data.range=auto"]).data.range == []
    assert load(str(basic), ["data.dtype=uint16", "data.range=[3,40]"]).data.range == [3, 40]


def test_a_chain_of_bases_is_merged_deepest_first(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "root.yaml").write_text(BASIC + "train: {batch: 8, seed: 1}\n")
    (tmp_path / "models" / "small.yaml").write_text("model: {G: {base_channels: 8}}\ntrain: {seed: 2}\n")
    (tmp_path / "mine.yaml").write_text("base: [root.yaml, models/small.yaml]\ntrain: {images: 5k}\n")
    config = load(str(tmp_path / "mine.yaml"))
    assert (config.train.batch, config.train.seed, config.train.images) == (8, 2, 5000)
    assert config.model.G["base_channels"] == 8


def test_a_circle_of_bases_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "is circular" in mistakes(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "images"), [("25000", 25000), ("25k", 25000), ("1.5M", 1500000), ("2e5", 200000), ("0.5k", 500)]
)
def test_numbers_of_images(basic: Path, text: str, images: int) -> None:
    assert load(str(basic), [f"train.images={text}"]).train.images == images


def test_schedules_take_one_or_two_values(basic: Path) -> None:
    config = load(str(basic), ["optim.G.lr=[2e-4,5e-5]", "loss.r1=2"])
    assert config.optim.G.lr == [2e-4, 5e-5]
    assert config.loss.r1 == [2.0]
    assert "neither a number nor [first, last]" in mistakes(basic, "loss.r1=[1,2,3]")
    assert load(str(basic), ["ema.half_life=[0,5M]"]).ema.half_life == [0, 5e6]
    assert load(str(basic), ["ema.half_life=20k"]).ema.half_life == [2e4]


def test_betas_become_floats(basic: Path) -> None:
    """torch refuses (0, 0.99), an integer beside a float."""
    betas = load(str(basic), ["optim.G.betas=[0,0.9]"]).optim.G.betas
    assert betas == (0.0, 0.9)
    assert all(type(beta) is float for beta in betas)


def test_all_mistakes_of_all_layers_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {G: {lrr: 1}}\n")
    (tmp_path / "bad.yaml").write_text("base: base.yaml\n" + BASIC + "train: {batch: many}\n")
    text = mistakes(tmp_path / "bad.yaml", "trian.seed=3", "train.precision=fp8", "model.G.widht=3", "train.images=3x")
    lines = text.split("\n")
    assert lines[0] == "6 mistakes in the config"
    assert f"{tmp_path}/base.yaml: optim.G.lrr: Key 'lrr' not in 'Optimizer'. Did you mean: 'lr'?" in text
    assert f"{tmp_path}/bad.yaml: train.batch: Value 'many' of type 'str' could not be converted to Integer" in text
    assert "override 1 'trian.seed=3': trian.seed: Key 'trian' not in 'Config'. Did you mean: 'train'?" in text
    assert "override 2 'train.precision=fp8': train.precision: Invalid value 'fp8', expected one of" in text
    assert "override 3 'model.G.widht=3': model.G.widht: Key 'widht' not in 'DcganGenerator'" in text
    assert (
        "override 4 'train.images=3x': train.images: '3x' is not a number of images: write 25000, 25k or 1.5M" in text
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--train.batch=3", "without dashes: train.batch=3"),
        ("train.batch", "an override is key=value"),
        ("train=3", "is a group of settings, not a value: set one of its keys"),
        ("optim.lr=3", "Did you mean: 'optim.G.lr' or 'optim.D.lr'?"),
        ("optim.lrr=3", "Did you mean: 'optim.D.lr'?"),
        ("batch=3", "Did you mean: 'train.batch'?"),
        ("width=3", "Did you mean: 'model.G.base_channels' or 'model.D.base_channels'?"),
        ("smooth=0.1", "Did you mean: 'loss.label_smoothing'?"),
        ("model.width=3", "Did you mean: 'model.G.base_channels' or 'model.D.base_channels'?"),
        ("model.G=3", "model.G: is a group of settings, not a value: set one of its keys, such as model.G.base_"),
        ("model.D=[a]", "model.D: is a group of settings, not a value"),
        ("train.batch=null", "train.batch: has no value: give one, or leave the setting out"),
        ("data.shards=null", "data.shards: has no value: give one, or leave the setting out"),
        ("data.shards=[a", "the value is not YAML, quote it"),
        ("model.family=dcgann", "model.family='dcgann': choose one of dcgan"),
        (
            "data.resolution=99",
            "the dcgan networks need sides of k x 2^n pixels",
        ),
        ("data.resolution=4", "data.resolution=4: must be from 8 to 1024"),
        ("train.n_critic=0", "train.n_critic=0: must be from 1 to 1000"),
        ("optim.G.betas=[0,1.5]", "optim.G.betas=1.5: must be from 0 to 0.999999"),
        ("model.G.base_channels=0", "model.G.base_channels=0: must be from 1 to 16384"),
        ("ema.half_life=-1", "ema.half_life=-1.0: must be at least 0"),
        ("ema.half_life=[0,x]", "'x' is not a number of images"),
        ("train.images=.inf", "inf is not a number of images: write 25000, 25k or 1.5M"),
        ("train.images=1e400", "is not a number of images"),
        ("loss.r1=.nan", "loss.r1=nan: must be a finite number"),
        ("optim.G.eps=.inf", "optim.G.eps=inf: must be a finite number"),
        ("model.family='???'", "model.family='???': choose one of dcgan"),
        ("model.family=[a]", "choose one of dcgan"),
        ("loss.r1.x={a: 1}", "loss.r1.x.a"),
        ("run.dir=\udcff", "the value is not YAML"),
        ("loss.name=wasserstein", "needs a Lipschitz critic: set loss.gp=10"),
        ("train.micro_batch=7", "train.batch=64 is not a multiple of train.micro_batch=7: choose one of 1, 2, 4, 8"),
        ("data.shards=${oc.env:WANDB_API_KEY}", "may not read the environment variable WANDB_API_KEY"),
        ("data.shards=${oc.env:DATA_ROOT}", "the environment variable DATA_ROOT is not set"),
        ("train.seed=${train.nothing}", "train.nothing"),
        ("data.shards=[]", "data.shards is not set"),
    ],
)
def test_a_mistake_names_what_where_and_the_way_out(basic: Path, override: str, told: str) -> None:
    assert told in mistakes(basic, override)


def test_settings_that_exclude_one_another(basic: Path) -> None:
    text = mistakes(basic, "model.D.norm=batch", "loss.r1=1", "loss.weight_clip=0.1", "loss.gp=10")
    assert "loss.r1 needs each image's own gradient, which batch norm in D mixes: set model.D.norm=none" in text
    assert "loss.weight_clip and loss.gp have the same purpose" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", "a config is a mapping of settings, not a list"),
        ("data: {a: 1\n", "not readable as YAML"),
        ("train: {batch: 1, batch: 2}\n", "duplicate key"),
        ("train: !!python/object:os.system {}\n", "not readable as YAML"),
        ("\x89PNG\r\n", "x.yaml: not text, so not a config"),
        ("train: {batch: \0}", "x.yaml: not text, so not a config"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="latin-1", newline="")
    assert told in mistakes(tmp_path / "x.yaml")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "face.yaml").write_text("")
    assert mistakes(tmp_path) == f"{tmp_path} is a folder without config.yaml: neither a config nor a run"


def test_a_value_in_place_of_a_group_gets_no_name_that_is_far_from_it(basic: Path) -> None:
    basic.write_text("data: data/faces\n")
    text = mistakes(basic)
    assert "data: is a group of settings, not a value: set one of its keys, such as data.shards" in text
    assert "Did you mean" not in text


def test_a_missing_file_is_told_with_a_near_one(basic: Path) -> None:
    assert f"did you mean {basic}?" in mistakes(basic.with_name("face.yaml"))


def test_the_snapshot_reads_back_to_an_equal_config(basic: Path, tmp_path: Path) -> None:
    config = load(str(basic), ["loss.r1=[1,0.1]", "model.G.base_channels=12", "wandb.tags=[a,b]", "run.dir=/r"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "run" / "config.yaml")) == config
    here = replace(config, run=replace(config.run, dir=str(tmp_path / "run")))
    assert load(str(tmp_path / "run")) == here  # a run folder stands for its config
    assert from_dict(to_dict(config)) == config


def test_a_permitted_variable_is_filled_in(basic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "/mnt/d")
    assert load(str(basic), ["data.shards=${oc.env:DATA_ROOT}/faces"]).data.shards == ["/mnt/d/faces"]


def test_changes_separates_what_a_resumed_run_may_change(basic: Path) -> None:
    old = load(str(basic))
    new = load(
        str(basic),
        ["train.images=2M", "data.decode_threads=3", "optim.G.lr=1e-3", "model.G.base_channels=8", "train.seed=4"],
    )
    free, refused = changes(old, new)
    assert set(free) == {"train.images", "data.decode_threads"}
    assert refused == {"optim.G.lr": ([2e-4], [1e-3]), "model.G.base_channels": (64, 8), "train.seed": (0, 4)}


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_a_batch_plan_covers_the_batch(basic: Path, world: int, micro: int) -> None:
    config = load(str(basic), ["train.batch=24", f"train.micro_batch={micro}"])
    batch_plan = make_batch_plan(config, world)
    assert batch_plan.world * batch_plan.micro_batch * batch_plan.passes == 24
    assert batch_plan == BatchPlan(24, world, micro or 24 // world, batch_plan.passes)


def test_an_impossible_batch_plan_tells_what_fits(basic: Path) -> None:
    config = load(str(basic))
    with pytest.raises(
        ConfigError, match=r"train.batch=64 cannot .* 3 ranks: use 1, 2 or 4 ranks, or train.batch=63 or 66"
    ):
        make_batch_plan(config, 3)
    with pytest.raises(ConfigError, match=r"does not divide the 16 images .* choose one of 1, 2, 4, 8 or 16"):
        make_batch_plan(replace(config, train=replace(config.train, micro_batch=32)), 4)
    with pytest.raises(ConfigError, match=r"2 rank\(s\) started, run.expected_world_size=4 wanted"):
        make_batch_plan(replace(config, run=replace(config.run, expected_world_size=4)), 2)


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_warnings_speak_of_batch_norm_where_a_batch_is_parted(basic: Path) -> None:
    config = load(str(basic), ["model.G.norm=batch"])
    assert not any("batch norm" in line for line in warnings(config, make_batch_plan(config, 1)))
    told = "batch norm in G sees each pass's own 32 images"
    assert any(told in line for line in warnings(config, make_batch_plan(config, 2)))
    config = load(str(basic), ["model.G.norm=batch", "train.micro_batch=32"])
    assert any(told in line for line in warnings(config, make_batch_plan(config, 1)))


def test_a_run_folder_is_a_config_wherever_it_lies_now(basic: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_text(to_yaml(load(str(basic), ["run.dir=runs/old"])))
    assert load(str(moved)).run.dir == str(moved)
    assert load(str(moved), ["run.dir=runs/new"]).run.dir == "runs/new"


def test_a_mistake_is_told_without_torch(basic: Path) -> None:
    code = (
        "import sys; from distgan.cli.main import main; "
        f"assert main(['train', {str(basic)!r}, 'train.batchh=3']) == 2; "
        f"assert main(['config', {str(basic)!r}]) == 0; "
        "assert 'torch' not in sys.modules and 'accelerate' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Did you mean: 'batch'?" in done.stderr


RESTORING = ["model.family=restore", "restore.degrade=[{noise: 25}]"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["restore.degrade=[{noise: 25}]"], "restore.degrade makes images to restore: set model.family=restore"),
        (
            ["model.family=restore", "restore.degrade=[{blur: [1, 40]}]"],
            r"restore.degrade\[0\]: blur=\[1, 40\] is impos",
        ),
        (["model.family=restore", "restore.degrade=[{noise: 25}, {jpg: 3}]"], r"restore.degrade\[1\]=.*one of noise"),
        (["model.family=restore", "restore.degrade=[3]"], "restore.degrade: "),
        (["model.family=restore", "restore.degrade={blur: 3}"], "restore.degrade is a setting, not a group of"),
        (
            [*RESTORING, "model.D.patches=3"],
            "model.D.patches=3: the logits along the height must be one of 1, 4, 8, 16",
        ),
        ([*RESTORING, "model.D.patches=64"], "model.D.patches=64"),
        ([*RESTORING, "model.D.patches=2"], "model.D.patches=2"),
        ([*RESTORING, "eval.every=10k"], "measured by PSNR and SSIM, .*: set eval.every=0"),
        ([*RESTORING, "restore.pixel_loss=l3"], "restore.pixel_loss"),
        ([*RESTORING, "restore.pixel_weight=-1"], "restore.pixel_weight=-1.0: must be at least 0"),
        ([*RESTORING, "data.resolution=8"], "the restore networks need .* 16 pixels at least, such as 16 or 18"),
        (["data.holdout=-1"], "data.holdout=-1: must be at least 0"),
    ],
)
def test_what_cannot_be_restored_is_told(basic: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(str(basic), overrides)


def test_a_recipe_survives_being_written_and_read(basic: Path, tmp_path: Path) -> None:
    recipe = "[{blur: [0.5, 2]}, {downsample: 4, p: 0.5}, {jpeg: [30, 90]}]"
    config = load(str(basic), ["model.family=restore", f"restore.degrade={recipe}", "data.holdout=1k"])
    assert config.restore.degrade == [{"blur": [0.5, 2]}, {"downsample": 4, "p": 0.5}, {"jpeg": [30, 90]}]
    assert config.data.holdout == 1000
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(str(tmp_path / "again.yaml")) == config
    assert from_dict(to_dict(config)) == config
    other = load(str(basic), ["model.family=restore", "restore.degrade=[{blur: 1}]", "data.holdout=1k"])
    assert set(changes(config, other)[1]) == {"restore.degrade"}


def test_restored_pictures_that_nothing_measures_are_warned_of(basic: Path) -> None:
    for overrides, is_told in ((RESTORING, True), ([*RESTORING, "data.holdout=10"], False), ([], False)):
        config = load(str(basic), overrides)
        assert any("data.holdout=500" in line for line in warnings(config, make_batch_plan(config, 1))) == is_told
    matched = load(str(basic), [*RESTORING, "loss.feature_matching=1"])  # pairs are matched, whatever the passes hold
    assert not any("feature_matching" in line for line in warnings(matched, make_batch_plan(matched, 2)))


@pytest.mark.parametrize("text", ["off", "Off", "'off'"])
def test_off_is_a_choice_although_yaml_reads_it_as_false(basic: Path, text: str) -> None:
    assert load(str(basic), [f"train.compile={text}"]).train.compile == "off"


def test_the_default_loss_has_the_penalties_that_it_needs(tmp_path: Path) -> None:
    """And another loss none that nobody asked for; a value that a config gives stands, whichever loss it is."""
    file = tmp_path / "c.yaml"
    file.write_text("data: {shards: x, resolution: 16}\n")
    for overrides, expected in (
        ([], ([1.0], [1.0])),
        (["loss.name=rpgan"], ([1.0], [1.0])),
        (["loss.name=hinge"], ([0.0], [0.0])),
        (["loss.name=hinge", "loss.r1=2"], ([2.0], [0.0])),
        (["loss.r2=0"], ([1.0], [0.0])),
    ):
        loss = load(str(file), overrides).loss
        assert (loss.r1, loss.r2) == expected, overrides
        saved = tmp_path / "saved.yaml"
        saved.write_text(to_yaml(load(str(file), overrides)))
        assert load(str(saved)).loss == loss, overrides
    without = load(str(file), ["loss.r2=0"])
    assert any("loss.r1 and loss.r2" in line for line in warnings(without, make_batch_plan(without, 1)))
    assert not any("loss.r1" in line for line in warnings(load(str(file)), make_batch_plan(load(str(file)), 1)))


TYPED = [
    "no",
    "yes",
    "off",
    "007",
    "1e3",
    "null",
    "~",
    "1_000",
    "0x10",
    "0o7",
    "2024-01-02",
    "12:30:00",
    "1.50",
    ".inf",
]


@pytest.mark.parametrize("typed", TYPED)
def test_a_text_stays_what_was_typed(typed: str, tmp_path: Path) -> None:
    """YAML would make False, 7, 1000.0, None or a number of seconds of these."""
    file = tmp_path / "a.yaml"
    file.write_text(f"data: {{shards: s, resolution: 8}}\nwandb:\n  name: {typed}\n  tags: [{typed}, b]\n")
    assert load(str(file)).wandb.name == typed
    assert load(str(file)).wandb.tags == [typed, "b"]
    found = load(
        str(file), [f"wandb.group={typed}", f"run.dir={typed}", f"wandb.tags=[{typed}]", f"data.shards=[{typed}]"]
    )
    assert (found.wandb.group, found.run.dir, found.wandb.tags, found.data.shards) == (typed, typed, [typed], [typed])
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    assert load(str(tmp_path / "again.yaml")) == found


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("a: b", "a: b"), ("lr # 2", "lr # 2"), ('"no"', "no"), ("it's", "it's"), ("", ""), ("a=b", "a=b")],
)
def test_a_text_of_the_command_line_is_kept_whole(typed: str, kept: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {shards: s, resolution: 8}\n")
    assert load(str(file), [f"wandb.notes={typed}"]).wandb.notes == kept
