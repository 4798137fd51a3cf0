"""Generated images -> WebDataset shards with an index next to each and a card that says where they come from.

Shard u holds unit u of the choice, so shards are made in any order by any number of processes, which agree through the
folder alone:

    000000.tar  000000.tar.index ...   finished shards: written aside, forced to disk, renamed
    .unfinished/generated.json         what is being generated; another set is refused
    .unfinished/000000.json            what the card will say of a finished shard
    dataset.json                       the card, when all are there; .unfinished goes then

So whoever is killed loses the shard at hand, and the same command continues.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from distgan.data import index_cache, tar
from distgan.errors import ConfigError, DataError, MachineError
from distgan.inference.selection import Choice, Drawn
from distgan.storage.atomic import aside, replace_file
from distgan.storage.byte_ranges import Source
from distgan.storage.home import user_path
from distgan.version import __version__

CARD, ASIDE, PLAN, NOTE = "dataset.json", ".unfinished", "generated.json", ".generated.json"
OWN = re.compile(rf"\d{{6}}\.tar(\.index)?|\.\d{{6}}\.tar\.index\..*|{ASIDE}|\.?{re.escape(CARD)}.*")


def write(
    out: str,
    choice: Choice,
    draw: Callable[[int], Iterable[Drawn]],
    generated: dict,
    *,
    card: dict,
    rank: int = 0,
    world: int = 1,
    threads: int = 2,
) -> str:
    """Write this process's shards, and the card where the set is complete then; returns a line that says which.

    Args:
        draw: Unit -> its images, in order of number.
        generated: What the images are a function of. It stands in the card, and a folder goes on only with the same.
        card: What else the card says.
        rank, world: Each of several processes writes its share.
        threads: That encode images.

    Raises:
        ConfigError: The folder holds something else.
        DataError: A shard of a finished set is missing.
        MachineError: The disk is full or cannot be written.
    """
    folder, generated = user_path(out), json.loads(json.dumps(generated))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder for the shards")
    line = f"{choice.num:,} images in {choice.num_units:,} shard(s): {out}"
    if _begin(folder, out, generated):
        return f"{line} (all of them were there already)"
    mine = range(rank, choice.num_units, world)
    missing = [unit for unit in mine if not _is_finished(folder, unit)]
    num = sum(map(choice.size, missing))
    bar = tqdm(total=num, unit=" images", disable=None if rank == 0 else True)
    try:
        with ThreadPoolExecutor(threads) as pool, bar:
            for unit in missing:
                _write_shard(folder, unit, draw(unit), pool)
                bar.update(choice.size(unit))
    except OSError as error:
        raise MachineError(
            f"--out {out}: {error.strerror or error}; finished shards stay, and the same command continues"
        ) from None
    found = len(mine) - len(missing)
    already = f" ({found} of {len(mine)} were there already)" if found else ""
    if _finish(folder, choice, generated, card):
        return line + already
    return f"{len(mine):,} of {line}{already}; {CARD} comes with the last one of the other processes"


def claim(out: str, generated: dict, *, may_grow: bool) -> Path:
    """A folder for single images of one set and no other; called by each process before its first image.

    Args:
        generated: What the images are a function of, `num` being how many they are.
        may_grow: Whether a set of fewer images is the beginning of this one.

    Raises:
        ConfigError: It holds something else.
    """
    folder = user_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    before, generated = _read(folder / NOTE), json.loads(json.dumps(generated))  # after it was looked for files
    if before is None and names:
        raise ConfigError(f"--out {out} holds {names[0]!r}, which is not of this set: choose another folder")
    if before is not None and may_grow and before.get("num", 0) < generated["num"]:
        before["num"] = generated["num"]
    if before not in (None, generated):
        raise ConfigError(f"--out {out} holds {_difference(before, generated)}, or choose another folder")
    replace_file(folder / NOTE, json.dumps(generated) + "\n")
    return folder


def _begin(folder: Path, out: str, generated: dict) -> bool:
    """Make the folder ready; True where all is done already."""
    folder.mkdir(parents=True, exist_ok=True)
    names = os.listdir(folder)  # before the plan is looked for, which is there before any shard of this set
    if foreign := sorted(name for name in names if not OWN.fullmatch(name)):
        raise ConfigError(f"--out {out} holds {foreign[0]!r}, which is not of a generated set: choose another folder")
    finished = _read(folder / CARD)
    before = _read(folder / ASIDE / PLAN) if finished is None else finished.get("generated")
    if finished is None and before is None and not any(name.endswith(".tar") for name in names):
        (folder / ASIDE).mkdir(exist_ok=True)
        replace_file(folder / ASIDE / PLAN, json.dumps(generated) + "\n")
        return False
    if before != generated:
        raise ConfigError(f"--out {out} holds {_difference(before, generated)}, or choose another folder")
    if finished is None:
        return False
    for shard in finished["shards"]:
        path = folder / shard["name"]
        if not path.exists() or path.stat().st_size != shard["bytes"]:
            raise DataError(f"--out {out}: {path.name} is not as {CARD} says: generate into another folder")
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    return True


def _difference(before: dict | None, now: dict) -> str:
    """What a folder holds instead, and how to have that."""
    if not isinstance(before, dict):
        return "shards that were not generated: move them away"
    differ = {key: (before.get(key), value) for key, value in now.items() if before.get(key) != value}
    if "sha256" in differ:
        return (
            f"images of {before.get('run')}, {before.get('checkpoint')}, not of {now['run']}, {now['checkpoint']}: "
            "to continue, name that checkpoint"
        )
    words = ", ".join(f"{key} {json.dumps(old)} instead of {json.dumps(new)}" for key, (old, new) in differ.items())
    return f"another set ({words}): to continue, ask for that"


def _is_finished(folder: Path, unit: int) -> bool:
    told, path = _read(folder / ASIDE / f"{unit:06d}.json"), folder / f"{unit:06d}.tar"
    return told is not None and path.exists() and path.stat().st_size == told["bytes"]


def _write_shard(folder: Path, unit: int, drawn: Iterable[Drawn], pool: ThreadPoolExecutor) -> None:
    """One shard, its index, and the note that it is finished, in this order."""
    name = f"{unit:06d}.tar"
    part = aside(folder / ASIDE / name)
    digest, classes, size, samples = hashlib.sha256(), {}, 0, 0
    try:
        with open(part, "xb") as file:
            for label, blob in pool.map(_encoded, drawn):  # all images of a shard are in memory for that
                file.write(blob)
                digest.update(blob)
                size, samples = size + len(blob), samples + 1
                if label is not None:
                    classes[label] = classes.get(label, 0) + 1
            file.write(tar.END)
            digest.update(tar.END)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name)
    finally:
        part.unlink(missing_ok=True)
    for left in folder.glob(f".{name}.index.*"):  # by one that was killed
        left.unlink(missing_ok=True)
    index_cache.load(str(folder / name), Source(), folder)
    told = {"name": name, "bytes": size + len(tar.END), "samples": samples, "sha256": digest.hexdigest()}
    replace_file(folder / ASIDE / f"{unit:06d}.json", json.dumps(told | {"classes": sorted(classes.items())}))


def _encoded(one: Drawn) -> tuple[int | None, bytes]:
    file = io.BytesIO()
    Image.fromarray(one.picture).save(file, format="PNG", compress_level=1)
    parts = {"png": file.getvalue()}
    if one.label is not None:
        parts["cls"] = b"%d" % one.label
    return one.label, tar.sample(f"{one.number:08d}", parts)


def _finish(folder: Path, choice: Choice, generated: dict, card: dict) -> bool:
    """Write the card if every shard is there; whether one is there now. Any process may be the last."""
    shards = [_read(folder / ASIDE / f"{unit:06d}.json") for unit in range(choice.num_units)]
    if any(shard is None for shard in shards):
        return (folder / CARD).exists()
    counts: dict[int, int] = {}
    for shard in shards:
        for label, count in shard.pop("classes"):
            counts[label] = counts.get(label, 0) + count
    names = card["classes"] or []
    whole = {
        "made_by": f"distgan {__version__}",
        "samples": sum(shard["samples"] for shard in shards),
        "class_counts": [counts.get(label, 0) for label in range(len(names))] or None,
        **card,
        "generated": generated,
        "digest": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
        "shards": shards,
    }
    replace_file(folder / CARD, json.dumps(whole, indent=1) + "\n")
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    return True


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(f"{path} is not what `distgan generate` wrote: remove it, or choose another folder") from None
