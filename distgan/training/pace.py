"""Describe a run's speed in the log, before its first line of metrics."""

from distgan.tracking.console import duration

EARLY = 20  # iterations after which the log says how fast the run is
SLOW_SEC = 3  # where the first iteration takes longer, the log says so at once


def first_iteration(images: int, seconds: float, images_left: int, *, on_cpu: bool) -> str:
    """Return a line on a first iteration that was slow: `images` in `seconds`; "" where it was fast enough."""
    if seconds <= SLOW_SEC:
        return ""
    advice = "; on a CPU, start with one of configs/*-small.yaml" if on_cpu else ""
    return f"the first {images} images took {seconds:.0f} s: at that pace, all take " + (
        duration(images_left / images * seconds) + advice
    )


def early(images: int, seconds: float, images_left: int, tick_images: int) -> str:
    """Return the line that comes after EARLY iterations."""
    speed = images / seconds
    return (
        f"{EARLY} iterations, {images} images: {speed:.3g} images/s, {duration(images_left / speed)} left; a line of "
        f"metrics comes every {tick_images} images"
    )
