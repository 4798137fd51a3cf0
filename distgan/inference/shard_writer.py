"""Write generated images as WebDataset shards, each with an index, and a card that says where the images come from.

Shard i holds group i of the selection, so shards are made in any order by any number of processes, which communicate
through the folder alone:

    000000.tar  000000.tar.index ...   finished shards: written under another name, flushed to disk, renamed
    .unfinished/generated.json         what is being generated; another set is refused
    .unfinished/000000.json            what the card will say of a finished shard
    dataset.json                       the card, when all shards are there; .unfinished is removed then

So a killed process loses its current shard, and the same command continues.
"""

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from distgan.data import image_file, index_cache, tar
from distgan.data.condition_table import PART, to_bytes
from distgan.errors import ConfigError, DataError, MachineError
from distgan.image_spec import ImageSpec
from distgan.inference.selection import GeneratedImage, SampleSelection
from distgan.storage.atomic import aside, replace_file
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import user_path
from distgan.version import __version__

CARD, ASIDE, PLAN, NOTE = "dataset.json", ".unfinished", "generated.json", ".generated.json"
OWN = re.compile(rf"\d{{6}}\.tar(\.index)?|\.\d{{6}}\.tar\.index\..*|{ASIDE}|\.?{re.escape(CARD)}.*")


def write(
    out: str,
    selection: SampleSelection,
    draw: Callable[[int], Iterable[GeneratedImage]],
    card: dict,
    groups: Sequence[int],
    threads: int,
    image: ImageSpec,
) -> str:
    """Write the shards of some groups, and the card if the set is then complete; returns a line that says which.

    Args:
        draw: Group -> its images, in order of number.
        card: What the card says apart from the shards. Its `generated` is what the images are a function of; a folder
            that was begun with another one is refused.
        groups: This process's share of the groups; the process with group 0 shows a progress bar.
        threads: Number of threads that encode images.
        image: Channels and values of the images.

    Raises:
        ConfigError: The folder holds something else.
        DataError: A shard of a finished set is missing.
        MachineError: The disk is full or cannot be written.
    """
    folder, generated = user_path(out), json.loads(json.dumps(card["generated"]))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder for the shards")
    line = f"{selection.num:,} images in {selection.num_groups:,} shard(s): {out}"
    if _begin(folder, out, generated):
        return f"{line} (all of them were there already)"
    missing = [group for group in groups if not _is_finished(folder, group)]
    bar = tqdm(total=sum(map(selection.size, missing)), unit=" images", disable=None if 0 in groups else True)
    try:
        with ThreadPoolExecutor(threads) as pool, bar:
            for group in missing:
                _write_shard(folder, group, draw(group), pool, image)
                bar.update(selection.size(group))
    except OSError as error:
        raise MachineError(
            f"--out {out}: {error.strerror or error}; finished shards stay, and the same command continues"
        ) from None
    num_before = len(groups) - len(missing)
    already = f" ({num_before} of {len(groups)} were there already)" if num_before else ""
    if _finish(folder, selection, card):
        return line + already
    return f"{len(groups):,} of {line}{already}; {CARD} comes with the last one of the other processes"


def claim(out: str, generated: dict, *, may_grow: bool) -> Path:
    """Reserve a folder for the single images of one set and return it; called by each process before its first image.

    Args:
        generated: What the images are a function of, with their number as `num`.
        may_grow: Whether a set of fewer images is the beginning of this one.

    Raises:
        ConfigError: The folder holds something else.
    """
    folder = user_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    before, generated = _read(folder / NOTE), json.loads(json.dumps(generated))  # read after the files were listed
    if before is None and names:
        raise ConfigError(f"--out {out} holds {names[0]!r}, which is not of this set: choose another folder")
    if before is not None and may_grow and before.get("num", 0) < generated["num"]:
        before["num"] = generated["num"]
    if before not in (None, generated):
        raise ConfigError(f"--out {out} holds {_difference(before, generated)}, or choose another folder")
    replace_file(folder / NOTE, json.dumps(generated) + "\n")
    return folder


def _begin(folder: Path, out: str, generated: dict) -> bool:
    """Prepare the folder; returns True if the set is finished already."""
    folder.mkdir(parents=True, exist_ok=True)
    names = os.listdir(folder)  # listed before the plan is read, which is there before any shard of this set
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
    """Return what a folder holds instead, and how to continue that; the end of a message."""
    if not isinstance(before, dict):
        return "shards that were not generated: move them away"
    differ = {key: (before.get(key), value) for key, value in now.items() if before.get(key) != value}
    if "sha256" in differ:
        return (
            f"images of {before.get('run')}, {before.get('checkpoint')}, not of {now['run']}, {now['checkpoint']}: "
            "to continue, name that checkpoint"
        )
    changes = ", ".join(f"{key} {json.dumps(old)} instead of {json.dumps(new)}" for key, (old, new) in differ.items())
    return f"another set ({changes}): to continue, ask for that"


def _is_finished(folder: Path, group: int) -> bool:
    summary, path = _read(folder / ASIDE / f"{group:06d}.json"), folder / f"{group:06d}.tar"
    return summary is not None and path.exists() and path.stat().st_size == summary["bytes"]


def _write_shard(
    folder: Path, group: int, images: Iterable[GeneratedImage], pool: ThreadPoolExecutor, of: ImageSpec
) -> None:
    """Write a shard, its index, and its summary, which marks it as finished, in this order."""
    name = f"{group:06d}.tar"
    part = aside(folder / ASIDE / name)
    digest, size, samples = hashlib.sha256(), 0, 0
    classes: dict[int, int] = {}
    try:
        with open(part, "xb") as file:
            for label, blob in pool.map(
                functools.partial(_encoded, of), images
            ):  # which holds all images of a shard in memory
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
    for leftover in folder.glob(f".{name}.index.*"):  # of a killed process
        leftover.unlink(missing_ok=True)
    index_cache.load(str(folder / name), ByteRangeReader(), folder)
    summary = {"name": name, "bytes": size + len(tar.END), "samples": samples, "sha256": digest.hexdigest()}
    replace_file(folder / ASIDE / f"{group:06d}.json", json.dumps(summary | {"classes": sorted(classes.items())}))


def _encoded(of: ImageSpec, image: GeneratedImage) -> tuple[int | None, bytes]:
    """Return an image's class, and its sample as bytes of a tar."""
    parts = {image_file.suffix(of): image_file.to_bytes(image.pixels, of)}
    if image.label is not None:
        parts["cls"] = b"%d" % image.label
    if image.condition is not None:
        parts[PART] = to_bytes(image.condition.tolist())
    return image.label, tar.sample(f"{image.number:08d}", parts)


def _finish(folder: Path, selection: SampleSelection, card: dict) -> bool:
    """Write the card if every shard is there; returns whether there is a card. Any process may be the last."""
    summaries = [_read(folder / ASIDE / f"{group:06d}.json") for group in range(selection.num_groups)]
    shards = [summary for summary in summaries if summary is not None]
    if len(shards) < selection.num_groups:
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
        "digest": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
        "shards": shards,
    }
    replace_file(folder / CARD, json.dumps(whole, indent=1) + "\n")
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    return True


def _read(path: Path) -> dict | None:
    """Return the JSON object of a file of ours, None where there is no such file. Raises ConfigError."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(f"{path} is not what `distgan generate` wrote: remove it, or choose another folder") from None
