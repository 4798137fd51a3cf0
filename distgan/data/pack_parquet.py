"""Images to be packed from parquet files, such as the exports of Hugging Face's data sets: the only door to pyarrow."""

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.data.image_format import MAX_BYTES
from distgan.data.labels import as_classes
from distgan.data.pack_entry import InputEntry, InputListing
from distgan.errors import DataError, MachineError
from distgan.storage.untrusted import json_of

if TYPE_CHECKING:
    import pyarrow

IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png", "bytes")  # usual names of columns
LABELS = ("label", "labels", "class", "category", "target", "fine_label", "cls")
ROWS = 64  # are read at a time


def list_parquet(
    paths: Sequence[Path], labels: bool, images: str = "", labels_in: str = "", conditions: Collection[str] = ()
) -> InputListing:
    """List the images in a column of encoded images: binary, or a struct with `bytes` and `path`.

    Args:
        labels: Whether there shall be labels.
        images, labels_in: Names of the columns; empty: found by their types and usual names.
        conditions: Columns that are conditions, and so no labels unless `labels_in` names them.

    Raises:
        DataError: Files that are not parquet, or without such a column.
        MachineError: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MachineError(f"{paths[0]} needs pyarrow: pip install 'distgan[parquet]'")
    import pyarrow.parquet

    try:
        files = [pyarrow.parquet.ParquetFile(path) for path in paths]
        schema = files[0].schema_arrow
        for path, file in zip(paths, files):
            if file.schema_arrow.names != schema.names:
                raise DataError(f"{path.name} has other columns than {paths[0].name}")
        features = _features(schema, paths[0])
        image = _image_column(schema, images, paths[0])
        label = _label_column(schema, features, labels_in, conditions, paths[0]) if labels else ""
        values: list[object] = []
        if label:
            for file in files:
                values += file.read(columns=[label]).column(label).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{paths[0]}: {str(error)[:200]}") from None
    total = sum(file.metadata.num_rows for file in files)
    classes, numbers = as_classes(values, lambda i: f"{label} of row {i}") if label else (None, [])
    names = features.get(label, {}).get("names") if label else None
    if classes and isinstance(names, list) and len(names) >= len(classes) and all(isinstance(n, str) for n in names):
        classes = names

    def entries() -> Iterator[InputEntry]:
        row = 0
        for path, file in zip(paths, files):
            for batch in file.iter_batches(ROWS, columns=[image]):
                for cell in batch.column(0).to_pylist():
                    yield _entry(cell, f"{path.name}[{row}]", path, numbers[row] if classes else -1)
                    row += 1

    origin = f"the column {label}" if classes else ""
    listing = InputListing(entries(), total, classes, origin=origin)
    if not images and len(schema.names) > 1:
        listing.assumed.append(f"the column {image} has the images: --images NAME takes another one")
    return listing


def parquet_columns(paths: Sequence[Path], names: Sequence[str]) -> list[list[object]]:
    """Return the values of columns, row by row through all files. Raises DataError."""
    import pyarrow.parquet

    files = [pyarrow.parquet.ParquetFile(path) for path in paths]
    known = files[0].schema_arrow.names
    if missing := [name for name in names if name not in known]:
        raise DataError(f"{paths[0]}: --condition {missing[0]}: there is no such column, only {known[:20]}")
    try:
        tables = [file.read(columns=list(names)) for file in files]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{paths[0]}: {str(error)[:200]}") from None
    return [[value for table in tables for value in table.column(name).to_pylist()] for name in names]


def _entry(cell: object, name: str, path: Path, label: int) -> InputEntry:
    """Return one image: its bytes, or a file that is named next to the table."""
    content, beside = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, bytes):
        too_large = len(content) > MAX_BYTES
        return InputEntry(name, label, content=None if too_large else content, size=len(content))
    inside = Path(str(beside)) if isinstance(beside, str) else Path()
    if isinstance(beside, str) and not inside.is_absolute() and ".." not in inside.parts:
        return InputEntry(name, label, path=str(path.parent / inside))
    return InputEntry(name, label, content=b"")


def _features(schema: "pyarrow.Schema", path: Path) -> dict[str, dict]:
    """Return what Hugging Face's library notes of each column; {} without such notes."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        noted = json_of(text, path)
    except DataError:
        return {}
    for key in ("info", "features"):
        noted = noted.get(key) if isinstance(noted, dict) else None
    return {name: one for name, one in noted.items() if isinstance(one, dict)} if isinstance(noted, dict) else {}


def _image_column(schema: "pyarrow.Schema", asked: str, path: Path) -> str:
    """Return the column that holds encoded images."""
    import pyarrow

    def holds_bytes(kind: "pyarrow.DataType") -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    if asked:
        if asked not in found:
            what = f"is {schema.field(asked).type}" if asked in schema.names else "is not there"
            raise DataError(f"{path}: --images {asked}: this column {what}; encoded images may be in {found}")
        return asked
    usual = [name for name in IMAGES if name in found]
    if not found or (len(found) > 1 and not usual):
        raise DataError(
            f"{path}: {'several columns' if found else 'no column'} of encoded images among {schema.names[:20]}: "
            "--images NAME says which one it is"
        )
    return usual[0] if usual else found[0]


def _label_column(
    schema: "pyarrow.Schema", features: dict[str, dict], asked: str, conditions: Collection[str], path: Path
) -> str:
    """Return the column of the labels; empty where there is none."""
    if asked and asked not in schema.names:
        raise DataError(f"{path}: --labels {asked}: there is no such column, only {schema.names[:20]}")
    others = [name for name in schema.names if name not in conditions]
    noted = [name for name in others if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in LABELS if name in others]
    if not asked and not usual and len(noted) > 1:
        raise DataError(f"{path}: several columns of labels ({', '.join(noted)}): --labels NAME says which one to take")
    return asked or (usual or noted or [""])[0]
