"""Tensors of a .pt file that others wrote: read without running code of it, and no larger than the file."""

import io
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from distgan.errors import DataError
from distgan.storage.checkpoint import machine_memory
from distgan.storage.untrusted import read

Values = dict[str, object]


def read_torch_file(path: Path) -> tuple[Values, bytes]:
    """Return the mapping in a file that `torch.save` wrote, and the bytes of the file.

    Raises:
        DataError: It needs code, is no such file, or holds no mapping.
    """
    data = read(path, machine_memory())
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except zipfile.BadZipFile:
        raise DataError(
            f"{path}: not a file of torch 1.6 or newer: other pickles are not opened, since they run code. Convert it "
            "to .safetensors where you trust it"
        ) from None
    if packed:
        raise DataError(f"{path}: {packed[0]!r} in it is compressed, which torch.save never does: not opened")
    try:
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = " ".join(str(error).split())
        reason = first.partition("GLOBAL ")[2].partition(" ")[0] or first[:120]
        raise DataError(
            f"{path}: it holds more than tensors ({reason}), and to load that would run code: save the state dicts "
            "alone, as torch.save({'G_ema': G_ema.state_dict()}, FILE), or as .safetensors"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DataError(f"{path}: not readable: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: it holds a {type(values).__name__}, not a state dict")
    return {str(name): value for name, value in values.items()}, data


def require_own_memory(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that claims more numbers than the file holds for it. Raises DataError."""
    if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DataError(f"{path}: {name} is a tensor of {list(tensor.shape)} without as many numbers")
