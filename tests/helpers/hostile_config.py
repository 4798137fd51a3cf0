"""A corpus of configs that cost much, break the reader, or make it show another file."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile import Case, Refused, Share, command

from distgan.config.load import from_dict, load

GOOD = "data: {shards: x, resolution: 8}\n"
SECRET = "s3cr3t"
REFUSED = ("refused 2",)


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """Each is a file, and is read by the command that prints what a config gives."""
    folder.mkdir(exist_ok=True)
    for number, (name, (text, allowed)) in enumerate(texts(share).items()):
        file = folder / f"{number}.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
        yield Case(f"a file: {name}", _read(file), allowed, memory_mb=256, cpu_sec=8)
    for name, word in OVERRIDES.items():
        yield Case(f"an override: {name}", lambda word=word: load(str(_good(folder)), [word]) and None, cpu_sec=8)
    for name, values in SAVED.items():
        yield Case(f"saved: {name}", lambda values=values: from_dict(values) and None, REFUSED)
    for name, text in SECRETS.items():
        base = folder / f"{name.replace(' ', '-')}.txt"
        base.write_text(text)
        file = folder / f"shows {name}.yaml"
        file.write_text(f"base: {base.name}\n{GOOD}")
        yield Case(f"base: {name}", _silent(file), REFUSED)
    for depth, same in ((8, True), (40, False)):
        chain = folder / f"chain{depth}"
        chain.mkdir()
        for i in range(depth):
            below = [f"{i + 1}.yaml" if same else f"x/../{i + 1}.yaml"] * 8
            (chain / f"{i}.yaml").write_text(f"base: [{', '.join(below)}]\n{GOOD}")
        (chain / f"{depth}.yaml").write_text(GOOD)
        yield Case(f"base: eight times itself, {depth} deep", _read(chain / "0.yaml"), REFUSED, cpu_sec=8)
    if share.whole:  # it takes seconds
        wide = folder / "wide.yaml"
        wide.write_text(f"base: [{', '.join(['0.yaml'] * 100_000)}]\n")
        (folder / "0.yaml").write_text(GOOD)
        yield Case("base: a hundred thousand files", _read(wide), REFUSED)
    for name, target in {"a device": "/dev/zero", "a folder": "/", "a terminal": "/dev/tty", "a fifo": "fifo"}.items():
        file = folder / f"base of {name}.yaml"
        file.write_text(f"base: {target}\n")
        yield Case(f"base: {name}", _read(file), REFUSED, memory_mb=256, wall_sec=20)
    os.mkfifo(folder / "fifo")
    hole = folder / "hole.yaml"
    with open(hole, "wb") as made:
        made.truncate(2**40)
    yield Case("a file: a hole of 1 TiB", _read(hole), REFUSED, memory_mb=256)


def texts(share: Share) -> dict[str, tuple[str | bytes, tuple[str, ...]]]:
    """Contents of files, and what may come of each."""
    found: dict[str, tuple[str | bytes, tuple[str, ...]]] = {}
    keys = itertools.cycle(("train.batch", "run.dir", "data.shards", "loss.r1", "model.G"))
    for value in (
        *("!!int abc", "!!int ''", "!!int 0x", "!!float x", "!!float ''", "!!bool x", "!!bool ''", "!!null x"),
        *("!!timestamp 2001-99-99", "!!timestamp x", "2001-99-99", "2001-01-01", "!!binary '*'", "!!set {a, b}"),
        *("!!omap [a]", "!!pairs [a]", "!!python/object/apply:os.system ['touch X']", "!x y", "*none", "&a [*a]"),
        *("9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 5000, "0" + "7" * 5000, "0o" + "7" * 9000),
        *("1" + ":59" * 5000, "1" + "_0" * 5000, "." + "9" * 5000, "9" * 400 + ".5", "1e" + "9" * 500, "[" * 5000),
        *("{a: " * 3000, "? [a, b] : c", "9" * 150, "0x" + "f" * 150, "[1, [2]]", "{}", "null", "~", ".inf", ".nan"),
        *('"\\0"', '"\\ud800"', "'" + "x" * 500_000 + "'", "${data.resolution}", "${", "${oc.env:HOME}" * 50),
    ):
        for key in (next(keys), next(keys))[: 2 if share.whole else 1]:
            section, _, name = key.partition(".")
            told = value if len(value) < 30 else f"{value[:12]}... of {len(value)}"
            found[f"{key}={told!r}"] = (f"{section}: {{{name}: {value}}}\n{GOOD if section != 'data' else ''}", ANY)
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    found |= {
        "laughs": ("a0: &a0 [x, x]\n" + laughs, REFUSED),
        "a zero byte": (b"data: \0", REFUSED),
        "bytes": (bytes(range(128, 256)), REFUSED),
        "two documents": (GOOD + "---\n" + GOOD, REFUSED),
        "a list": ("[a, b]", REFUSED),
        "a word": ("word", REFUSED),
        "a number": ("7", REFUSED),
        "a million keys": ("".join(f"k{i}: 1\n" for i in range(20_000)), REFUSED),
        "a key of 100,000 letters": (f"{'k' * 100_000}: 1\n", REFUSED),
        "keys that are no texts": ("{1: 2, null: 3, [a]: 4, 2001-01-01: 5}", REFUSED),
        "2 MiB": (GOOD + "#" * 2**21, REFUSED),
        "deep": ("a: " * 1 + "[" * 20_000, REFUSED),
        "base of a number": ("base: 7\n", REFUSED),
        "base with a zero byte": ('base: "\\0"\n', REFUSED),
        "base of a long name": (f"base: {'b' * 5000}\n", REFUSED),
        "base of itself": ("base: ./././base.yaml\n", REFUSED),
    }
    return found


ANY = ("right", "refused 2")
OVERRIDES = {
    "digits": "train.batch=" + "9" * 5000,
    "hex": "train.batch=0x" + "f" * 5000,
    "int": "train.batch=!!int abc",
    "float": "loss.r1=!!float x",
    "date": "train.batch=2001-99-99",
    "deep": "data.shards=" + "[" * 5000,
    "zero byte": "run.dir=a\0b",
    "no text": "run.dir=\udcff",
    "long key": "a." * 5000 + "b=1",
}
SAVED = {
    "a zero byte": {"run": {"dir": "a\0b"}},
    "a huge number": {"train": {"batch": 10**400}},
    "a zero byte in a list": {"data": {"shards": ["a", "b\0"]}},
}
SECRETS = {
    "a line": f"{SECRET}\n",
    "accounts": f"root:x:0:0:{SECRET}:/root:/bin/bash\nbin:x:1:1:{SECRET}:/:/sbin/nologin\n",
    "shadow": f"root:${SECRET}$:19000:0:99999:7:::\n",
    "credentials": f"[default]\naws_secret_access_key = {SECRET}\n",
    "environment": f"export TOKEN={SECRET}\n",
    "address": f"https://user:{SECRET}@host\n",
    "quoted": f"'{SECRET}\n",
    "an alias": f"*{SECRET}/+\n",
    "a tab": f"\t{SECRET}: {SECRET}\n",
    "twice": f"'{SECRET} x': 1\n'{SECRET} x': 2\n",
    "a key": f"-----BEGIN KEY-----\n{SECRET}\n-----END KEY-----\n",
}


def _good(folder: Path) -> Path:
    file = folder / "good.yaml"
    file.write_text(GOOD)
    return file


def _read(file: Path) -> Callable[[], None]:
    return lambda: command("config", file) and None


def _silent(file: Path) -> Callable[[], None]:
    """What a file that is no config holds is not shown."""

    def run() -> None:
        try:
            command("config", file)
        except Refused as error:
            assert SECRET not in str(error), str(error)
            raise

    return run
