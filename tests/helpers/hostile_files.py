"""A corpus of indexes, cards, checkpoints, exports, statistics, run folders and label tables that somebody forged.

Each is a good one with a single thing wrong: a field of another value, or a file that is something else than a file.
"""

import copy
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import made_runs
import numpy as np
import runs
from hostile import Case, Share, command
from shards import write_shards

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load as load_config
from distgan.data import dataset_card, find_labels, index_cache, labels, shard_index
from distgan.distributed.process_group import World
from distgan.errors import DataError
from distgan.evaluation.reference import load_statistics
from distgan.inference.loading import load_generator
from distgan.storage import checkpoint_folder
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.run_dir import RunDir
from distgan.tools.report.page import report
from distgan.training import checkpointer
from distgan.training.learner import Learner

DEEP: list = []
for _ in range(200):
    DEEP = [DEEP]
VALUES = (None, True, -1, 0, 7, 0.5, 10**12, 10**60, "", "x", "../../etc/passwd", "${oc.env:HOME}", [], {}, ["x"], DEEP)
TEXTS = ("", "null", "[]", "{}", "5", '"x"', "{", '{"a": NaN}', "[1e999]", "9" * 5000, "[" * 100_000, '"\\ud800"')
REFUSED_OR_RIGHT = ("refused 2", "refused 3", "right")


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """All readers, one after the other."""
    for make in (indexes, cards, generators, exports, best, resumed, statistics, run_folders, tables):
        yield from make(folder / make.__name__, share)


def forged(share: Share, good: dict, fields: list[str], every: int = 1) -> Iterator[tuple[str, dict]]:
    """A mapping with each of some fields (with dots between keys) gone, or of one of VALUES.

    Args:
        every: Which of VALUES, the first of them another one in each field.
    """
    for number, field in enumerate(fields):
        *outer, last = field.split(".")
        for i, value in share.of(enumerate([KeyError, *VALUES[number % every :: every]])):
            bad = copy.deepcopy(good)
            inner = bad
            for name in outer:
                inner = inner[name]
            if value is KeyError:
                del inner[last]
            elif value == inner[last] and type(value) is type(inner[last]):
                continue
            else:
                inner[last] = value
            yield f"{field} #{i} {'gone' if value is KeyError else str(value)[:30]}", bad


def no_files(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What may lie at a path instead of a file: how to make each."""
    yield "a fifo", lambda: os.mkfifo(path)
    yield "a folder", path.mkdir
    yield "a link to a device", lambda: path.symlink_to("/dev/zero")
    yield "a link to another file", lambda: path.symlink_to(__file__)
    yield "a link to itself", lambda: path.symlink_to(path.name)
    yield "too large", lambda: (path.touch(), os.truncate(path, 2**40))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


# Data.


def indexes(folder: Path, share: Share) -> Iterator[Case]:
    """Beside a good shard: whatever it is, the samples that are found are those of the shard."""
    shard = write_shards(folder, [5])[0]
    path, cache = Path(f"{shard}.index"), folder / "cache"
    good = index_cache.load(shard, ByteRangeReader(), cache)

    def read(make: Callable[[], object]) -> None:
        remove(path)
        make()
        for found in (
            index_cache.summary(shard, ByteRangeReader(), cache),
            index_cache.load(shard, ByteRangeReader(), cache).summary(),
        ):
            assert found["digest"] == good.digest and found["size"] == good.size
        shutil.rmtree(cache, ignore_errors=True)

    head = copy.deepcopy(good.summary())
    made = [(name, bad) for name, bad in forged(share, head, list(head)) if not name.startswith(("digest", "defects"))]
    made += [("two kinds, one count", head | {"kinds": [["png"], ["cls"]]}), ("no parts", head | {"kinds": [[]]})]
    for name, bad in made:
        yield Case(f"index: {name}", lambda bad=bad: read(lambda: path.write_bytes(index_of(bad, good))))
    for text in share.of(TEXTS):
        yield Case(f"index: head {text[:20]}", lambda text=text: read(lambda: path.write_bytes(index_of(text, good))))
    for name in ("first", "kind", "label", "offset", "length"):
        for value in (2**31, 60_000, -3 if name == "label" else 65_535):
            changed = copy.deepcopy(good)
            getattr(changed, name)[:] = min(value, np.iinfo(getattr(changed, name).dtype).max)
            data = changed.to_bytes()
            yield Case(f"index: {name} {value}", lambda data=data: read(lambda: path.write_bytes(data)))
    for name, make in share.of(no_files(path), 3):
        yield Case(f"index: {name}", lambda make=make: read(make))


def index_of(head: object, good: shard_index.ShardIndex) -> bytes:
    """An index with a forged head, its checksums right."""
    text = (head if isinstance(head, str) else json.dumps(head)).encode()
    text += b" " * (-len(text) % 8)
    arrays = b"".join(getattr(good, name).astype(dtype).tobytes() for name, dtype in shard_index.ARRAYS.items())
    data = shard_index.MAGIC + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little") + text + arrays
    return data + zlib.crc32(data).to_bytes(4, "little")


def cards(folder: Path, share: Share) -> Iterator[Case]:
    """What of a card cannot be used is passed over."""
    shard = write_shards(folder, [2])[0]
    path = folder / "dataset.json"
    good = {"samples": 2, "resolution": 16, "classes": ["a", "b"], "class_counts": [1, 1], "crop": "center"}
    good |= {"skipped": {"x": 1}, "changed": {}, "values": [0, 255], "cut_away": 0.5, "source": "s", "digest": "d"}

    def read(make: Callable[[], object], about: str = "") -> str:
        remove(path)
        make()
        card = dataset_card.read(shard)
        dataset_card.facts(card)
        names, _ = dataset_card.join_classes([shard])
        assert about == "classes" or "classes" not in card or names == ["a", "b"], names
        return "right" if card == good else "skipped"

    for name, bad in forged(share, good, list(good)):
        yield Case(
            f"card: {name}", lambda bad=bad, name=name: read(lambda: path.write_text(json.dumps(bad)), name.split()[0])
        )
    for text in share.of(TEXTS):
        yield Case(f"card: {text[:20]}", lambda text=text: read(lambda: path.write_text(text)))
    for name, make in share.of(no_files(path), 3):
        yield Case(f"card: {name}", lambda make=make: read(make))


def tables(folder: Path, share: Share) -> Iterator[Case]:
    """Label tables: a class for each picture, or refused."""

    def read(data: bytes) -> None:
        files = [
            labels.File("a.png", lambda n: b""),
            labels.File("dataset.json", lambda n: data[:n] if n >= 0 else data),
        ]
        found = find_labels.find_labels(files, [0])
        assert found.classes is None or 0 <= found.of[0] < len(found.classes)

    rows = [[["a.png", value]] for value in (*VALUES, [0, 1, 0], [0, 0], float("inf"), float("nan"), 10**90)]
    rows += [[["a.png", 1], ["a.png", DEEP]], [["a.png"]], [[1, 2]], ["a.png", 1], {"a.png": 3}, "x", 5, {}]
    for i, row in enumerate(rows):
        data = json.dumps({"labels": row}).encode()
        yield Case(f"table: row {i}", lambda data=data: read(data), ("right", "refused 3"))
    for text in share.of(TEXTS):
        yield Case(f"table: {text[:20]}", lambda text=text: read(text.encode()), ("right", "refused 3"))


# What a run wrote.


def forge(path: Path, state: object = None, manifest: object = None) -> None:
    """Give a checkpoint another state, with hashes that are right, or another manifest."""
    if state is not None:
        text = state if isinstance(state, str) else json.dumps(state)
        (path / "state.json").write_text(text)
        told = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())}
        manifest = json.loads((path / "manifest.json").read_text()) | {"state.json": told}
    if manifest is not None:
        (path / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))


def generators(folder: Path, share: Share) -> Iterator[Case]:
    """Checkpoints to draw from: they give finite images, or are refused."""
    good = max((runs.untrained(folder / "run", unseen=[1]) / "checkpoints").glob("step-*"))
    state, manifest = (json.loads((good / name).read_text()) for name in ("state.json", "manifest.json"))
    numbers = itertools.count()

    def read(change: Callable[[Path], object]) -> None:
        path = folder / f"copy{next(numbers)}" / good.name
        shutil.copytree(good, path)
        change(path)
        try:
            G = load_generator(path)
            assert np.isfinite(G(2).numpy()).all()
        finally:
            shutil.rmtree(path.parent)

    fields = ["images", "num_classes", "unseen", "revision", "config", "config.data", "config.data.resolution"]
    fields += [
        "config.model",
        "config.model.family",
        "config.model.z_dim",
        "config.model.G",
        "config.model.G.base_channels",
    ]
    for name, bad in forged(share, state, fields, every=5):
        change = lambda path, bad=bad: forge(path, state=bad)  # noqa: E731
        yield Case(f"generator: {name}", lambda change=change: read(change), REFUSED_OR_RIGHT)
    for text in share.of(TEXTS):
        change = lambda path, text=text: forge(path, state=text)  # noqa: E731
        yield Case(f"generator: state {text[:20]}", lambda change=change: read(change), ("refused 3",))
        change = lambda path, text=text: forge(path, manifest=text)  # noqa: E731
        yield Case(f"generator: manifest {text[:20]}", lambda change=change: read(change), ("refused 3",))
    told = manifest["G.safetensors"]
    names = ("../../etc/passwd", "/etc/passwd", "/dev/zero", "..", ".", "", "a/b.json", "a\0b.json", "x" * 300, "logs")
    forged_manifests = [(f"name {name[:20]!r}", manifest | {name: told}) for name in names]
    forged_manifests += [(f"G_ema {v!r:.30}", manifest | {"G_ema.safetensors": v}) for v in VALUES[::3]]
    forged_manifests += [
        (f"bytes {v!r:.30}", manifest | {"G_ema.safetensors": told | {"bytes": v}}) for v in VALUES[::2]
    ]
    forged_manifests += [
        (f"{name} is not in it", {k: v for k, v in manifest.items() if k != name}) for name in manifest
    ]
    for name, bad in forged_manifests:
        change = lambda path, bad=bad: forge(path, manifest=bad)  # noqa: E731
        allowed = REFUSED_OR_RIGHT if name.startswith("opt") else ("refused 3",)
        yield Case(f"generator: manifest: {name}", lambda change=change: read(change), allowed)
    for file in ("manifest.json", "state.json", "G_ema.safetensors"):
        for name, make in share.of(no_files(folder / "spare" / file), 3):
            (folder / "spare").mkdir(exist_ok=True)

            def put(path: Path, make: Callable[[], object] = make, file: str = file) -> None:
                remove(path / file)
                make()
                (folder / "spare" / file).rename(path / file)

            yield Case(f"generator: {file} is {name}", lambda put=put: read(put), ("refused 3",))
    no_tensors = {"empty": b"", "header of 2^62": (2**62).to_bytes(8, "little") + b"{}", "a pickle": b"\x80\x04."}
    no_tensors["a shape of 10^12"] = safetensors({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}})
    no_tensors["another network"] = safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    for name, data in no_tensors.items():

        def replaced(path: Path, data: bytes = data) -> None:
            (path / "G_ema.safetensors").write_bytes(data)
            entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            forge(path, manifest=manifest | {"G_ema.safetensors": entry})

        yield Case(f"generator: tensors: {name}", lambda replaced=replaced: read(replaced), ("refused 3",))


def safetensors(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def exports(folder: Path, share: Share) -> Iterator[Case]:
    """Exported generators, likewise."""
    good = folder / "good"
    command("export", runs.untrained(folder / "run", unseen=[1]), good)
    told = json.loads((good / "config.json").read_text())
    path = folder / "copy"

    def read(change: Callable[[], object]) -> None:
        remove(path)
        shutil.copytree(good, path)
        change()
        G = load_generator(path)
        assert np.isfinite(G(2).numpy()).all()

    fields = [
        *told,
        *(f"generator.{name}" for name in told["generator"]),
        *(f"origin.{name}" for name in told["origin"]),
    ]
    fields += [
        "generator.settings.base_channels",
        "origin.config.train",
        "origin.config.ema.half_life",
        "weights.sha256",
    ]
    for name, bad in forged(share, told, fields, every=2):
        text = json.dumps(bad)
        yield Case(
            f"export: {name}",
            lambda text=text: read(lambda: (path / "config.json").write_text(text)),
            REFUSED_OR_RIGHT,
        )
    for text in share.of(TEXTS):
        yield Case(
            f"export: {text[:20]}",
            lambda text=text: read(lambda: (path / "config.json").write_text(text)),
            ("refused 3",),
        )
    for file in ("config.json", "model.safetensors"):
        for name, make in share.of(no_files(path / file), 3):
            yield Case(
                f"export: {file} is {name}",
                lambda make=make, file=file: read(lambda: (remove(path / file), make())),
                ("refused 3",),
            )


def resumed(folder: Path, share: Share) -> Iterator[Case]:
    """Checkpoints that a run goes on from: it becomes what they hold, or refuses them."""
    shards = runs.make_digits(folder / "data")
    more = ["augment.pipe=ada", "augment.target=0.6", "balance.adapt=d_lr", "train.images=24", "sample.every=0"]
    config = runs.write_config(folder / "config.yaml", shards)
    command("train", config, f"run.dir={folder / 'run'}", *more, "wandb.mode=disabled")
    good = max((folder / "run" / "checkpoints").glob("step-*"))
    path = folder / "copies" / good.name
    state = json.loads((good / "state.json").read_text())
    settings = load_config(str(config), [*more, f"run.dir={folder / 'run'}", "wandb.mode=disabled"])
    learner = Learner(settings, World(), make_batch_plan(settings, 1))

    def read(change: Callable[[], object]) -> None:
        remove(path.parent)
        shutil.copytree(good, path)
        change()
        checkpointer.load(learner, path)
        now, schedulers = learner.state, learner.schedulers
        assert min(now.images, now.iterations, now.train_sec, now.num_replaced) >= 0
        schedulers.step_hyperparams(now.images), schedulers.row(now.images)
        learner.step.stats.flush()
        assert learner.layout.lanes > 0

    fields = [name for name in state if name not in ("config", "torch", "compile", "ranks", "threads", "micro-batch")]
    fields += [f"layout.{name}" for name in state["layout"]] + ["controls.verdicts", "controls.augment.p"]
    fields += ["controls.balance.level", "controls.verdicts.augment", "config.run", "config.optim"]
    for name, bad in forged(share, state, fields, every=5):
        yield Case(f"resume: {name}", lambda bad=bad: read(lambda: forge(path, state=bad)), REFUSED_OR_RIGHT)
    for what, rows in (("ragged", [[1.0], [1.0, 2.0]]), ("nothing", []), ("empty", [[]]), ("short", [[1.0]])):
        bad = state | {"stats": rows}
        yield Case(f"resume: meter {what}", lambda bad=bad: read(lambda: forge(path, state=bad)), REFUSED_OR_RIGHT)

    def without(name: str) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        forge(path, manifest={k: v for k, v in manifest.items() if k != f"{name}.safetensors"})

    def exchanged(name: str, other: str) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        shutil.copy(path / f"{other}.safetensors", path / f"{name}.safetensors")
        forge(path, manifest=manifest | {f"{name}.safetensors": manifest[f"{other}.safetensors"]})

    for name, other in (("G", "D"), ("D", "G"), ("opt_G", "opt_D"), ("G_ema", "opt_G")):
        yield Case(f"resume: no {name}", lambda name=name: read(lambda: without(name)), ("refused 3",))
        yield Case(
            f"resume: {other} as {name}",
            lambda name=name, other=other: read(lambda: exchanged(name, other)),
            ("refused 3",),
        )


def statistics(folder: Path, share: Share) -> Iterator[Case]:
    """Statistics of real images: a Gaussian, or refused."""
    folder.mkdir()
    path, dim = folder / "real.npz", 4
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, dim)).astype(np.float32)
    sigma = np.cov(points.astype(np.float64), rowvar=False)
    values, vectors = np.linalg.eigh(sigma)
    header = {
        "version": 1,
        "origin": {"extractor": "toy", "resolution": 16},
        "num": 40,
        "num_corrupt": 0,
        "num_gray": 0,
    }
    good = {"mu": points.mean(0).astype(np.float64), "sigma": sigma, "root": (vectors * values**0.5) @ vectors.T}
    good |= {"points": points, "labels": np.zeros(0, np.int64), "numbers": np.arange(40)}

    def read(arrays: dict[str, np.ndarray], head: object = header) -> None:
        told = {} if head is None else {"header": np.array(head if isinstance(head, str) else json.dumps(head))}
        np.savez(path, **arrays, **told)
        found = load_statistics(path, "toy", dim, 16).features
        assert (np.linalg.eigvalsh(found.gaussian.cov.numpy()) > -1e-9).all()
        assert found.gaussian.mean.isfinite().all() and found.root.isfinite().all()

    yield Case("statistics: good", lambda: read(good), ("right",))
    yield Case("statistics: another tool's", lambda: read({k: good[k] for k in ("mu", "sigma")}, None), ("right",))
    nan, skew = np.where(np.eye(dim) > 0, np.nan, sigma), sigma + np.triu(np.ones((dim, dim)), 1)
    negative = {"-I": -np.eye(dim), "one negative": np.diag([1.0, 1, 1, -1]), "skew": skew, "NaN": nan}
    negative |= {"text": np.full((dim, dim), "x"), "complex": sigma + 1j, "wide": np.eye(dim + 1), "flat": sigma[0]}
    for what, array in negative.items():
        for name in ("sigma", "root") if what != "-I" else ("sigma",):
            yield Case(f"statistics: {name} {what}", lambda bad=good | {name: array}: read(bad), ("refused 3",))
        bare = {"mu": good["mu"], "sigma": array}
        yield Case(f"statistics: another tool's {what}", lambda bare=bare: read(bare, None), ("refused 3",))
    for name in good:
        for what, array in (("a number", np.array(1.0)), ("of 3", np.zeros(3)), ("inf", np.full(dim, np.inf))):
            yield Case(f"statistics: {name} {what}", lambda bad=good | {name: array}: read(bad), ("refused 3",))
        rest = {k: v for k, v in good.items() if k != name}
        yield Case(f"statistics: no {name}", lambda rest=rest: read(rest), ("refused 3",))
    for name, bad in forged(share, header, [*header, "origin.extractor", "origin.resolution"]):
        yield Case(f"statistics: {name}", lambda bad=bad: read(good, bad), REFUSED_OR_RIGHT)
    for text in share.of(TEXTS):
        yield Case(f"statistics: header {text[:20]}", lambda text=text: read(good, text), ("refused 3",))

    def read_other(make: Callable[[], object]) -> None:
        remove(path)
        make()
        load_statistics(path, "toy", dim, 16)

    for name, make in share.of(no_files(path), 3):
        yield Case(f"statistics: {name}", lambda make=make: read_other(make), ("refused 3",))


def run_folders(folder: Path, share: Share) -> Iterator[Case]:
    """Run folders of others: the report shows what can be read, nothing else, and writes over nothing else."""
    row = {"Progress/images": 1000, "Progress/kimg": 1, "Loss/D": 1.0, "Metrics/fd": 5.0}
    good = made_runs.make_run(folder / "good", [row] * 2, evals=[row], grids=1)
    path, secret = folder / "run", folder / "secret"
    secret.write_text("THE SECRET")

    def read(change: Callable[[], object]) -> str:
        remove(path)
        shutil.copytree(good, path)
        change()
        lines = report([str(path)])
        page = (path / "report.html").read_text()
        assert "THE SECRET" not in page and secret.read_text() == "THE SECRET"
        return "skipped" if any(line.startswith("warning: ") for line in lines) else "right"

    def told(run: RunDir) -> None:
        run.read_status(), run.evaluations(), run.truncate_after(500)
        run.open(["distgan"])
        run.add_metrics({}), run.add_evaluation({}), run.record_changes({}), run.close()

    status = {"state": "running", "total_images": 10, "images": 5, "world": 1, "reason": "", "time": "now"}
    environment = {"starts": [{"time": "t", "host": "h", "command": "c", "packages": {}, "variables": {}}]}
    for file, content in (("status.json", status), ("environment.json", environment)):
        for name, bad in forged(share, content, list(content), every=3):
            text = json.dumps(bad)
            yield Case(f"report: {name}", lambda text=text, file=file: read(lambda: (path / file).write_text(text)))
    for file in ("metrics.jsonl", "evals.jsonl"):
        for name, bad in forged(share, row, list(row), every=3):
            text = json.dumps(row) + "\n" + json.dumps(bad) + "\n"
            yield Case(
                f"report: {file}: {name}", lambda text=text, file=file: read(lambda: (path / file).write_text(text))
            )
    files = ("status.json", "environment.json", "metrics.jsonl", "evals.jsonl", "config.yaml")
    for file, text in [(file, text) for file in files for text in share.of(TEXTS[::3])]:
        yield Case(
            f"report: {file}: {text[:20]}", lambda text=text, file=file: read(lambda: (path / file).write_text(text))
        )
    for text in ("base: /etc/passwd", "data: {shards: '${oc.env:HOME}'}", "train: !!int x", "a: &a [*a]", "x" * 2**21):
        yield Case(
            f"report: config {text[:30]}", lambda text=text: read(lambda: (path / "config.yaml").write_text(text))
        )
    for file in (*files, "log.txt", "samples/reals.png", ".lock"):
        made = (*no_files(path / file), ("a link", lambda file=file: (path / file).symlink_to(secret)))
        for name, make in share.of(made, 3):
            yield Case(
                f"report: {file} is {name}", lambda make=make, file=file: read(lambda: (remove(path / file), make()))
            )
    yield Case("report: samples is a link", lambda: read(lambda: (remove(path / "samples"), link(path / "samples"))))
    yield Case(
        "report: report.html is a link", lambda: read(lambda: (path / "report.html").symlink_to(secret)), ("right",)
    )
    for file in (".lock", "metrics.jsonl", "evals.jsonl", "status.json", "environment.json"):
        made = (*no_files(path / file), ("a link", lambda file=file: (path / file).symlink_to(secret)))
        for name, make in share.of(made, 3):

            def go_on(make: Callable[[], object] = make, file: str = file) -> None:
                remove(path)
                shutil.copytree(good, path)
                remove(path / file)
                make()
                try:
                    told(RunDir(path))
                finally:
                    assert secret.read_text() == "THE SECRET"

            yield Case(f"run folder: {file} is {name}", go_on, ("right", "refused 3", "refused 5"), programs=("git",))


def link(path: Path) -> None:
    path.symlink_to("/usr/share")


def best(folder: Path, share: Share) -> Iterator[Case]:
    """best.json names a checkpoint of its own folder."""
    run = runs.untrained(folder / "run")
    path = run / "checkpoints" / "best.json"

    def read(text: str) -> None:
        path.write_text(text)
        try:
            found = checkpoint_folder.find(run / "best")
        except DataError as error:
            assert "has no best checkpoint" in str(error)
            raise
        assert found.parent == run / "checkpoints"

    for name in ("../../x", "/etc", "step-000000001000/../../..", 5, None, [], "step-000000001000"):
        yield Case(f"best: {name}", lambda name=name: read(json.dumps({"checkpoint": name})), REFUSED_OR_RIGHT)
