"""Files that runs of the command line leave, and the flags of a small training."""

import json
from pathlib import Path

from safetensors.torch import load_file

SMALL = ["--limit-train", "192", "--batch-size", "64", "--backend", "graph", "--data", "bundled"]


def rows(directory):
    return [json.loads(line) for line in Path(directory, "metrics.jsonl").read_text().splitlines()]


def untimed(directory):
    timed = ("examples_per_second", "gradient_norm")  # no norm is known of a step before a resume
    return [
        {k: v for k, v in row.items() if k not in timed and not k.endswith("seconds")}
        for row in rows(directory)
    ]


def final_tensors(directory):
    newest = max(Path(directory, "checkpoints").iterdir())
    return {name: leaf.tolist() for name, leaf in load_file(newest / "tensors.safetensors").items()}
