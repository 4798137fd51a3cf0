"""Suggestions for keys that no setting has."""

import difflib
from dataclasses import Field

from distgan.config.choices import own_schemas
from distgan.config.fields import leaves
from distgan.config.renamed import new_last_part


def other_places(name: str, schema: dict[str, Field], family: str) -> str:
    """Return the sentence that names the settings whose last part is, or nearly is, that of an unknown name."""
    own = [(group, schema) for group, part, schema in own_schemas() if part == family or group[:6] != "model."]
    nets = [f"{group}.{key}" for group, schema in own for key, _ in leaves(schema)]
    last = name.rpartition(".")[2]
    last = new_last_part(last) or last
    places = [known for known in [*schema, *nets] if known.rpartition(".")[2] == last]
    if not places:
        by_last_part = {known.rpartition(".")[2]: known for known in schema}
        places = [by_last_part[near] for near in difflib.get_close_matches(last, by_last_part, n=1, cutoff=0.7)]
    return f". Did you mean: {' or '.join(map(repr, places))}?" if places else ""
