"""Proof of what a rank consumed: a line for every sample, in audit/rank<r>.jsonl."""

import json
from pathlib import Path

from distgan.data.dataset import Dataset
from distgan.data.loader import Batch
from distgan.storage.untrusted import open_to_append


class SampleLog:
    """Appends {"position", "shard", "key"} for each sample, in the order of consumption."""

    def __init__(self, folder: Path, rank: int, dataset: Dataset) -> None:
        folder.mkdir(exist_ok=True)
        self._file = open_to_append(folder / f"rank{rank}.jsonl")  # as long as the run
        self._dataset = dataset

    def write(self, batch: Batch) -> None:
        """Append a line for each sample of a batch."""
        for position, sample in zip(batch.positions.tolist(), batch.samples.tolist()):
            shard, key = self._dataset.key(sample)
            self._file.write(json.dumps({"position": position, "shard": shard, "key": key}) + "\n")

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
