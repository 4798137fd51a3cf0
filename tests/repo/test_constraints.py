"""constraints.txt: one version for each package that distgan brings, on every Python, and it is the installed one."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import ROOT

MAKE = "run launch/constraints.sh, then: pip install -e '.[dev]' -c constraints.txt"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OF_TORCH = ("nvidia-", "cuda-", "triton")  # each build of torch pins its own


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(pins: list[Requirement], **environment: str) -> dict[str, Requirement]:
    """The pin of each package in an environment, by default in this one; never two."""
    found: dict[str, Requirement] = {}
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate(environment or None):
            assert found.setdefault(canonicalize_name(pin.name), pin) is pin, f"{pin.name} has two pins"
    return found


def needed(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed distribution needs here."""
    texts = metadata.requires(name) or []
    found = [Requirement(text) for text in texts]
    return [
        one for one in found if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras or {""})
    ]


def installed(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Versions of all that a distribution brought into this environment, itself left out."""
    found: dict[str, str] = {}
    waiting, seen = [(canonicalize_name(name), extras)], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for wanted in needed(*one):
            child = canonicalize_name(wanted.name)
            try:
                found[child] = metadata.version(child)
            except metadata.PackageNotFoundError:  # an extra that was not asked for
                continue
            waiting.append((child, frozenset(wanted.extras)))
    return {key: version for key, version in found.items() if key != name}


def test_every_installed_package_has_a_pin_and_is_that_version() -> None:
    known = pinned(pins())
    found = installed("distgan", frozenset({"", "dev"}))
    assert len(found) > 60
    for name, version in found.items():
        if not name.startswith(OF_TORCH):
            assert name in known, f"{name} {version} has no pin: {MAKE}"
            assert known[name].specifier.contains(version), f"{name} {version} is installed, not {known[name]}: {MAKE}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_package_asks_for_is_pinned_on_every_python(python: str) -> None:
    """So the file was made anew after the last change of pyproject.toml."""
    here = {"python_version": python, "python_full_version": f"{python}.1"}
    known = pinned(pins(), **here)
    asked = [Requirement(text) for text in metadata.requires("distgan") or []]
    extras = {"", *metadata.metadata("distgan").get_all("Provides-Extra", [])}
    for one in asked:
        if one.name == "distgan" or not (
            one.marker is None or any(one.marker.evaluate({**here, "extra": extra}) for extra in extras)
        ):
            continue
        (version,) = (spec.version for spec in known[canonicalize_name(one.name)].specifier)
        assert one.specifier.contains(version), f"{one} and {known[canonicalize_name(one.name)]}: {MAKE}"


def test_pins_are_exact_and_choose_no_build_of_torch() -> None:
    """A local version, such as +cpu, or packages of one CUDA would decide which build of torch users get."""
    for pin in pins():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert not pin.name.startswith(OF_TORCH), pin
