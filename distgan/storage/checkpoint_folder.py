"""The checkpoints of a run: which is the newest good one, the best, the one to resume from, and which are removed."""

import json
import logging
import shutil
from pathlib import Path

from distgan.errors import ConfigError, DataError
from distgan.storage.atomic import replace_file
from distgan.storage.checkpoint import EXPORT, CorruptCheckpointError, verify
from distgan.storage.home import user_path
from distgan.storage.saved_state import Best, SavedState
from distgan.storage.untrusted import parse, read_json

log = logging.getLogger("distgan")


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a run."""
    return sorted((p for p in folder.glob("step-" + 12 * "[0-9]") if p.is_dir()), reverse=True)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose hashes hold, and what is wrong with newer ones."""
    refused: list[str] = []
    for path in newest_first(folder):
        try:
            verify(path)
            return path, refused
        except CorruptCheckpointError as error:
            refused.append(f"{path.name}: {error}")
    return None, refused


def find(path: Path) -> Path:
    """Return the checkpoint that `path` means: itself, or the newest good one of a run folder or its checkpoints/.

    RUN/best means the one that evaluations found to be the best.
    """
    if (path / "manifest.json").exists():
        return path
    if names_best(path):
        folder = path.parent if newest_first(path.parent) else path.parent / "checkpoints"
        name = read_best(folder).get("checkpoint")
        if name is None or not (folder / name / "manifest.json").exists():
            raise DataError(
                f"{path}: {folder} has no best checkpoint: a run knows one once it has evaluated (eval.every); name "
                "the run for its newest checkpoint"
            )
        return folder / name
    if all((path / file).exists() for file in EXPORT):
        raise DataError(
            f"{path} is what `distgan export` wrote: a generator alone, without the discriminator and the optimizers "
            "that resuming needs. Name the run that it was made of, or one of its checkpoints; a new run starts from "
            "such weights with init.from"
        )
    newest, refused = newest_good(path if newest_first(path) else path / "checkpoints")
    if newest is not None:
        for reason in refused:
            log.warning(f"skipping a corrupt checkpoint: {reason}")
        return newest
    if refused:
        raise DataError(f"{path}: no good checkpoint there; {'; '.join(refused)}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.name == "checkpoints" or any((path / name).exists() for name in ("checkpoints", "config.yaml")):
        raise DataError(
            f"{path}: no checkpoint yet: the first one is written after checkpoint.every images, or when the run is "
            "stopped"
        )
    raise DataError(
        f"{path}: neither a run folder, nor a checkpoint, nor a folder that `distgan export` wrote: name one of these"
    )


def describe(path: Path, found: Path) -> str:
    """Return a line that says which checkpoint `find` took for `path`, and why."""
    why = "named" if found == path else "the best one" if names_best(path) else "the newest good one"
    return f"checkpoint: {found}, after {read_state(found)['images']:,} images ({why})"


def names_best(path: Path) -> bool:
    """Return whether a path asks for the best checkpoint of its run; not so a folder of that name."""
    return path.name == "best" and not path.exists() and path.parent.is_dir()


def read_state(path: Path) -> SavedState:
    """Return the state of a checkpoint, without its tensors."""
    file = path / "state.json"
    try:
        return parse(SavedState, read_json(file, follow_links=False), file)
    except FileNotFoundError:
        raise DataError(f"{path}: state.json is missing: name another checkpoint") from None


def choose(folder: Path, resume: str) -> tuple[Path | None, bool]:
    """Return the checkpoint that a run with checkpoints in `folder` resumes from, and whether it is its own.

    It reads all of a checkpoint to compare hashes, logs a warning for each corrupt one, and changes nothing.

    Args:
        resume: "auto", the newest good one; "never", none, which needs a folder without any; or a path: one of the
            run's own takes it back to there (`set_aside_newer`), any other is where a new run begins. What was trained
            with the same path since then is resumed, as by "auto": the same command continues.
    """
    own, refused = newest_good(folder)
    for reason in refused:
        log.warning(f"skipping a corrupt checkpoint: {reason}")
    if resume == "never":
        if own or refused:
            raise ConfigError(f"run.resume=never, but {folder} has checkpoints: choose another run.dir")
        return None, False
    if resume != "auto":
        wanted = find(user_path(resume))
        if wanted.parent.resolve() != folder.resolve():
            return (own, True) if own else (wanted, False)
        continues = own is not None and _began_at(own) == resume
        return (own if continues else wanted), True
    if refused and own is None:
        raise DataError(f"{folder} has no good checkpoint left; move it away to start from scratch")
    return own, True


def set_aside_newer(folder: Path, chosen: Path, resume: str) -> None:
    """Rename the checkpoints that are newer than the run's own one that `choose` returned for a path."""
    if resume == "auto" or _began_at(chosen) == resume:
        return
    times = 1 + len({path.name.split("-")[1] for path in folder.glob("aside-*")})
    for newer in newest_first(folder):
        if newer.name > chosen.name:
            newer.rename(folder / f"aside-{times}-{newer.name}")


def _began_at(path: Path) -> object:
    """Return what run.resume was in the run that wrote a checkpoint."""
    run = read_state(path)["config"].get("run")
    return run.get("resume") if isinstance(run, dict) else None


def require_left(folder: Path, resume: str, images: int, max_minutes: float) -> None:
    """Refuse to begin a run of so many images or minutes from a checkpoint of another one that has had them.

    Raises:
        ConfigError: With the fix; before anything is written.
    """
    if resume in ("auto", "never") or newest_good(folder)[0] is not None:
        return
    wanted = find(user_path(resume))
    state = read_state(wanted)
    seen, minutes = state["images"], state.get("train_sec", 0) / 60
    if 0 < max_minutes <= minutes:
        raise ConfigError(
            f"run.resume={resume}: {wanted.name} was trained for {minutes:.1f} minutes, which "
            f"train.max_minutes={max_minutes:g} counts: nothing would be trained. Set train.max_minutes to more"
        )
    if seen >= images:
        raise ConfigError(
            f"run.resume={resume}: {wanted.name} has seen {seen:,} images, which train.images={images:,} counts: "
            f"nothing would be trained. Set train.images to more than {seen:,}"
        )


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest `keep_last`, the first at or after each multiple of `keep_every` images, and the best.

    The best is the one that `record_best` wrote last.
    """
    best = read_best(folder).get("checkpoint")
    paths = newest_first(folder)[::-1]
    images = [int(path.name.removeprefix("step-")) for path in paths]
    for before, at, path in list(zip([0, *images], images, paths))[:-keep_last]:
        if path.name != best and (not keep_every or at // keep_every == before // keep_every):
            shutil.rmtree(path, ignore_errors=True)
    for part in folder.glob(".step-*.part"):  # of a save that was killed
        shutil.rmtree(part, ignore_errors=True)


def read_best(folder: Path) -> dict:
    """Return what best.json holds (`checkpoint`, `metric`, `value`); nothing where there is none."""
    try:
        return dict(parse(Best, read_json(folder / "best.json", follow_links=False), "best.json"))
    except FileNotFoundError:
        return {}
    except DataError as error:
        log.warning(f"warning: {folder / 'best.json'}: {error}: skipped")
        return {}


def record_best(folder: Path, best: dict | None) -> None:
    """Write best.json, or remove it."""
    if best is None:
        (folder / "best.json").unlink(missing_ok=True)
    elif best != read_best(folder):
        replace_file(folder / "best.json", json.dumps(best) + "\n")
