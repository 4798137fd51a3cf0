"""Classes by the paths of images: the folder at some level of their paths, or the archive that holds them."""

import os
import re
from collections.abc import Sequence

from distgan.data.labels import SAY_OTHERWISE, TABLE, Labels, labels_of, number_order
from distgan.errors import DataError

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "rgb"}
MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth"}
MASKS |= {"seg", "segs", "segmentation", "segmentations", "segmentationclass", "labelmap", "labelmaps"}
_MASK_ENDING = re.compile(r"[_.-](mask|masks|seg|segmentation|gt|label|labels|matte|trimap)$", re.IGNORECASE)
_STORAGE = re.compile(r"(?:.*/)?\d{5}/img\d{8}\.\w+")  # what NVIDIA's dataset_tool.py writes


def _split(names: Sequence[str]) -> tuple[list[list[str]], int]:
    """Return the folders of each name, and how many of them all have in common."""
    folders = [name.split("/")[:-1] for name in names]
    return folders, len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it takes whole elements)


def from_folders(names: Sequence[str], image_numbers: Sequence[int]) -> Labels:
    """Take folders as classes: the first in which the paths of the images differ, below train/ and val/."""
    _refuse_masks(names)
    folders, depth = _split(names)
    if all(map(_STORAGE.fullmatch, names)):
        return Labels(lacking=f"folders such as {folders[0][-1]}/ only store images, and there is no {TABLE}")
    tops = {folder[depth] for folder in folders if len(folder) > depth}
    if len(tops) > 1 and {top.lower() for top in tops} <= SPLITS:
        splits = " and ".join(f"{top}/" for top in sorted(tops))
        labels = from_level(names, image_numbers, depth + 2, below=splits)
        labels.assumed.append(
            f"{splits} are parts of one data set, not classes, and all are packed: name one of them as the source to "
            f"pack it alone; --label folders:{depth + 1} takes them as classes"
        )
        return labels
    return from_level(names, image_numbers, None)


def from_level(names: Sequence[str], image_numbers: Sequence[int], level: int | None, below: str = "") -> Labels:
    """Take the folder at a level, 1 at the top, as the class; None: the first at which the paths differ."""
    folders, depth = _split(names)
    at = depth if level is None else level - 1
    outside = [name for name, folder in zip(names, folders) if len(folder) <= at]
    if outside:
        some = len(outside) < len(names) or below or level is not None
        reason = f"{len(outside):,} image(s), such as {outside[0]}, are in no class folder"
        return Labels(lacking=f"{reason}: remove them, or name a folder of classes as the source" if some else "")
    classes = sorted({folder[at] for folder in folders}, key=number_order)
    number = {name: i for i, name in enumerate(classes)}
    where = f"the folders below {below}" if below else "the folders"
    if level is None and at:
        where += f" in {'/'.join(folders[0][:at])}/"
    elif level is not None and not below:
        where += f" at level {level}"
    return labels_of(classes, (number[folder[at]] for folder in folders), image_numbers, where)


def _refuse_masks(names: Sequence[str]) -> None:
    """Refuse images next to their masks: these are no two classes, and a mask is no image to learn from."""
    inside: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            inside.setdefault("/".join(parts[:depth]), set()).add(part)
    for above, folders in inside.items():
        masks, images = ([name for name in sorted(folders) if name.lower() in known] for known in (MASKS, IMAGES))
        if masks and images:
            before = f"{above}/" if above else ""
            raise DataError(
                f"{before}{images[0]} and {before}{masks[0]} look like images and their masks, not like classes: "
                f"name the folder of the images alone as the source; or, to pack all: {SAY_OTHERWISE}"
            )
    stems = {name.rpartition(".")[0] or name for name in names}
    masks = [stem for stem in stems if (cut := _MASK_ENDING.sub("", stem)) != stem and cut in stems]
    if masks and 3 * len(masks) >= len(stems):
        raise DataError(
            f"{len(masks):,} of {len(stems):,} images look like masks of others, such as {min(masks)}: move them "
            f"away; or, to pack all: {SAY_OTHERWISE}"
        )


def from_archives(archives: Sequence[str], image_numbers: Sequence[int], sure: bool = True) -> Labels:
    """Take each archive as a class, unless their names look like those of shards."""
    classes = sorted(set(archives), key=number_order)
    if classes == [""] or (len(classes) < 2 and not sure):
        if sure:
            raise DataError("--label archives: the source is not a folder of archives")
        return Labels()
    bare = [os.path.basename(name) for name in classes]
    if not sure and len({re.sub(r"\d+", "", name) for name in bare}) == 1:
        return Labels(
            lacking="the names of the archives differ in numbers alone, as those of shards do: --label archives takes "
            "each archive as a class"
        )
    if not sure and {name.lower() for name in bare} <= SPLITS:
        return Labels(lacking="the archives are named as parts of a data set, not as classes")
    number = {name: i for i, name in enumerate(classes)}
    labels = labels_of(
        bare if len(set(bare)) == len(bare) else classes,
        (number[name] for name in archives),
        image_numbers,
        "the names of the archives",
    )
    if not sure:
        labels.assumed.append("each archive is a class, since they hold nothing but images: --no-labels says otherwise")
    return labels
