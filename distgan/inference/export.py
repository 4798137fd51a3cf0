"""Export a trained generator as files that load without the trainer, each checked against the generator itself."""

import contextlib
import importlib.util
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distgan.errors import ConfigError, MachineError
from distgan.image_spec import LEVELS, ImageSpec
from distgan.inference import sampling
from distgan.inference.exported_folder import DESCRIPTION, WEIGHTS, describe
from distgan.inference.loading import load_generator, locate
from distgan.inference.trained_generator import TrainedGenerator
from distgan.models import networks
from distgan.models.spectral_norm import spectral_norm_layers
from distgan.storage import checkpoint
from distgan.storage.atomic import aside
from distgan.storage.formatting import whole_number
from distgan.storage.home import user_path
from distgan.storage.printable import printable
from distgan.version import __version__

TOLERANCE = 1e-5  # largest difference of an exported generator's images, on a scale of -1..1
ONNX_BYTES = 2 * 10**9  # an ONNX file ends at 2 GiB
SUFFIXES = {".onnx": "onnx", ".pt": "torchscript", ".pth": "torchscript", ".ts": "torchscript"}  # suffix -> format
OPSET = 18  # of ONNX: the oldest one that torch's exporter writes without conversion

Inputs = dict[str, Tensor]  # by name, in the order of the network's arguments
Run = Callable[[Inputs], np.ndarray]  # -> images


class Format(NamedTuple):
    """A format of exported generators.

    Attributes:
        write: Writes (generator, its card, path).
        read: Loads a written file as a function.
        needs: Packages that it needs, installed by the extra named as the format.
    """

    write: Callable[[TrainedGenerator, str, Path], None]
    read: Callable[[Path], Run]
    needs: tuple[str, ...] = ()


def export(path: str, out: str, kind: str) -> str:
    """Write the average generator of a run or checkpoint to `out`, which must not exist; returns a line that says so.

    Args:
        kind: "safetensors", a folder that `load_generator` takes; "torchscript" or "onnx", one file.

    Raises:
        ConfigError: `out` exists or has the suffix of another format, or this generator cannot be exported as that.
        MachineError: A package is missing.
    """
    target, form = user_path(out), FORMATS[kind]
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{out} exists: name another path, or remove it first")
    if (meant := SUFFIXES.get(target.suffix.lower(), kind)) != kind:
        what = "folder" if kind == "safetensors" else "file"
        raise ConfigError(f"{out}: --as {kind} would write a {what} of that name: did you mean --as {meant}?")
    if missing := [name for name in form.needs if importlib.util.find_spec(name) is None]:
        raise MachineError(f"--as {kind} needs {' and '.join(missing)}: pip install 'distgan[{kind}]'")
    G = load_generator(locate(path), "cpu", restores=None)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = aside(target)
    try:
        with _quiet():
            try:
                form.write(G, card(G, kind, target.name), part)
            except (OSError, ConfigError):
                raise
            except Exception as error:  # torch's exporters raise whatever they meet
                reason = " ".join(str(error).split())[:300]
                raise ConfigError(
                    f"--as {kind}: the family {G.spec.family!r} cannot be exported so: {type(error).__name__}: {reason}"
                ) from error
            difference = _difference(G, form.read(part))
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"--as {kind}: what was exported differs from the generator by {difference:.1e}, more than "
                f"{TOLERANCE:g} on a scale of -1..1; nothing was written"
            )
        part.rename(target)
    finally:
        _remove(part)
    size = f"{networks.num_weights(G.net) / 1e6:.2f}M weights, {G.image.size} pixels"
    return f"{G.spec.family}, {size}: {out} (differs from the generator by at most {difference:.0e})"


def card(G: TrainedGenerator, kind: str, name: str) -> str:
    """Return the model card of the file or folder `name`, as Markdown: its inputs, its use and its origin."""
    origin, config, name = G.origin, G.origin["config"], printable(name)
    classes = G.num_classes
    norms = {type(module).__name__ for module in G.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    facts = {
        "network": f"{G.spec.family} generator, {networks.num_weights(G.net):,} weights, float32",
        "batch norm": "yes, with the running statistics of training (evaluation mode)" if norms else "none",
        "spectral norm": "yes" if spectral_norm_layers(G.net) else "none",
        "run": f"{origin['run']}, {origin['checkpoint']}, after {origin['images']:,} images",
        "checkpoint sha256": origin["sha256"],
        "weights": f"the running average of training (half-life {G.half_life} images)",
        "loss": config["loss"]["name"],
        "seed": config["train"]["seed"],
        "made by": f"distgan {__version__}, torch {torch.__version__}",
    }
    image, of_classes = G.image, f", {classes} classes" if classes else ""
    shape = f"float32 [B, {image.channels}, {image.height}, {image.width}]"
    untrained = f", but not {', '.join(map(str, G.spec.unseen))}: not trained, no images" * bool(G.spec.unseen)
    rows = {
        "pictures": f"| `pictures` | {shape} | to be restored; {_values_of(image)} |",
        "z": f"| `z` | float32 [B, {G.z_dim}] | standard normal |",
        "labels": f"| `labels` | int64 [B] | classes 0 to {classes - 1}{untrained} |",
        "condition": f"| `condition` | float32 [B, {_condition_columns(G)} |",
    }
    names = list(example(G, 1))
    inputs = "\n".join(rows[name] for name in names)
    use = USE[kind + " restores" * (kind == "safetensors" and G.restores)].format(
        name=name,
        arguments=", ".join(names),
        fed="{" + ", ".join(f'"{each}": {each}' for each in names) + "}",
        labels=f", labels={G.seen[-1]}" if classes else "",
    )
    table = "\n".join(f"| {key} | {printable(str(value))} |" for key, value in facts.items())
    what, tag = ("restored images", "image-to-image") if G.restores else ("images", "image-generation")
    place = "" if kind == "safetensors" else ", which this file holds as metadata"
    return f"""---
library_name: distgan
tags: [gan, {tag}, {G.spec.family}]
---

# {name}: {what} of {image.size} pixels{of_classes}

{use}

| input | type | values |
| --- | --- | --- |
{inputs}

Output: `images`, {shape}, {_channels_of(image)}; {_values_of(image)}. Where the network has no
bound, values may pass these ends a little. {_stored_by(image)} B is any number.

| | |
| --- | --- |
{table}

The config of the training is in `{DESCRIPTION}`{place}. Whose images it was trained on, and under which terms, this
card does not know: say so before you pass it on.
"""


def _condition_columns(G: TrainedGenerator) -> str:
    """Return the length of the vector of conditions and what its columns are, for a table."""
    if G.conditions is None:
        return "0] |"
    rows, start = [], 0
    for one in G.conditions.conditions.fields:
        last = start + one.columns - 1
        first = str(start) if last - 1 == start else f"{start} to {last - 1}"
        what = {
            "number": f"(value - {one.mean:.9g}) / {one.std:.9g}",
            "flag": "0 or 1",
            "class": f"one-hot of {', '.join(one.classes[:20])}{' ...' * (len(one.classes) > 20)}",
            "vector": f"values / {one.std:.9g}",
        }[one.kind]
        unknown = f"column {last}: 1 where unknown, the others 0" if one.may_be_unknown else f"column {last}: 0"
        rows.append(f"{printable(one.name)}: column {first}: {printable(what)}, {unknown}")
        start = last + 1
    return f"{start}] | {'; '.join(rows)}".replace("\n", " ")


def _channels_of(image: ImageSpec) -> str:
    """Return names of the channels."""
    colors = {1: "gray", 3: "red, green, blue"}.get(image.num_colors, f"channels 0 to {image.num_colors - 1}")
    return colors + ", alpha" * image.alpha


def _values_of(image: ImageSpec) -> str:
    """Return what the ends of the range mean."""
    if (image.dtype, image.low, image.high) == ("uint8", 0, 255):
        return "-1 is black and 1 is white"
    return f"-1 is {whole_number(image.low)} and 1 is {whole_number(image.high)} of the training data ({image.dtype})"


def _stored_by(image: ImageSpec) -> str:
    """Return a sentence with the formula of stored values."""
    numbers = image.half_range, image.low + image.half_range, image.low, image.high
    half, middle, low, high = map(whole_number, numbers)
    as_what = {"uint8": "As bytes", "uint16": "As 16-bit numbers"}.get(image.dtype, "As in the training data")
    rounded = ".round()" if image.dtype in LEVELS else ""
    return f"{as_what}: `(images * {half} + {middle}){rounded}.clip({low}, {high})`."


USE = {
    "safetensors": """```python
from distgan import load_generator

G = load_generator("{name}")
images = G(16, seed=1{labels})  # images 0 to 15 of seed 1, as `distgan generate` makes them
images = G({arguments})
```""",
    "safetensors restores": """```python
from distgan import load_generator

G = load_generator("{name}", restores=True)
images = G.restore(pictures{labels})
```""",
    "torchscript": """```python
import torch

G = torch.jit.load("{name}")  # or torch::jit::load in C++; newer torch calls it deprecated
images = G({arguments})
```""",
    "onnx": """```python
import onnxruntime

G = onnxruntime.InferenceSession("{name}")
(images,) = G.run(["images"], {fed})
```""",
}


def example(G: TrainedGenerator, num: int) -> Inputs:
    """Return example inputs of `network(G)` for `num` images, without those that it would ignore."""
    inputs = {}
    if G.restores:
        shape = G.image.channels, G.image.height, G.image.width
        inputs["pictures"] = sampling.latents(1, range(num), math.prod(shape)).view(num, *shape).tanh()
    if _uses_latents(G):
        inputs["z"] = sampling.latents(0, range(num), G.z_dim)
    if G.conditions is not None:
        return inputs | {"condition": torch.from_numpy(G.conditions.encoded(0, range(num)))}
    return inputs | ({"labels": torch.arange(num) % G.num_classes} if G.num_classes else {})


def network(G: TrainedGenerator) -> nn.Module:
    """Return the network to export; it takes the inputs of `example` in that order."""
    return G.net if _uses_latents(G) else _WithoutLatents(G.net)


def _uses_latents(G: TrainedGenerator) -> bool:
    return not G.restores or bool(G.net.noise)


class _WithoutLatents(nn.Module):
    """An image-to-image network that ignores latents, as a network without that input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.net(pictures, None, labels)


def _write_safetensors(G: TrainedGenerator, card: str, part: Path) -> None:
    weights = checkpoint.save_tensors({name: tensor.contiguous() for name, tensor in G.net.state_dict().items()})
    part.mkdir()
    (part / WEIGHTS).write_bytes(weights)
    (part / DESCRIPTION).write_text(json.dumps(describe(G, weights), indent=1) + "\n")
    (part / "README.md").write_text(card)


def _read_safetensors(part: Path) -> Run:
    net = network(load_generator(part, "cpu", restores=None))
    return lambda inputs: net(*inputs.values()).numpy()


def _write_torchscript(G: TrainedGenerator, card: str, part: Path) -> None:
    inputs = tuple(example(G, 3).values())
    traced = torch.jit.trace(network(G), inputs, check_trace=False)  # `export` checks it, by other inputs than these
    torch.jit.save(traced, str(part), _extra_files={DESCRIPTION: json.dumps(describe(G)), "README.md": card})


def _read_torchscript(part: Path) -> Run:
    loaded = torch.jit.load(str(part), "cpu")
    return lambda inputs: loaded(*inputs.values()).numpy()


def _write_onnx(G: TrainedGenerator, card: str, part: Path) -> None:
    size = 4 * networks.num_weights(G.net)
    if size > ONNX_BYTES:
        raise ConfigError(f"--as onnx: {size / 1e9:.1f} GB of weights, and an ONNX file ends at 2 GB: use safetensors")
    inputs = example(G, 3)
    program = torch.onnx.export(
        network(G),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=["images"],
        dynamic_shapes=tuple({0: "batch"} for _ in inputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # with dynamo=True
    for node in program.model.graph:
        node.metadata_props.clear()  # paths and line numbers of code on this machine
    program.model.metadata_props.update({DESCRIPTION: json.dumps(describe(G)), "README.md": card})
    program.model.doc_string = card
    program.save(part, external_data=False)


def _read_onnx(part: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

    return lambda inputs: session.run(["images"], {name: value.numpy() for name, value in inputs.items()})[0]


FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, _read_safetensors),
    "torchscript": Format(_write_torchscript, _read_torchscript),
    "onnx": Format(_write_onnx, _read_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}


def _difference(G: TrainedGenerator, run: Run) -> float:
    """Return the largest difference of images over batches of several sizes, infinite where they are not finite.

    Where values lie outside of -1..1, the difference is relative to the largest one.
    """
    largest = 0.0
    for num in (1, 2, 5):
        inputs = example(G, num)
        expected = network(G)(*inputs.values()).numpy()
        images = run(inputs)
        if images.shape != expected.shape or not (np.isfinite(images).all() and np.isfinite(expected).all()):
            return float("inf")
        largest = max(largest, float(np.abs(images - expected).max() / max(1.0, np.abs(expected).max())))
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporters, which warn of deprecations and of packages that they could have used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
