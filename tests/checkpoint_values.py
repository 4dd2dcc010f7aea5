"""Values that tests of checkpoints save, and their comparison."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcnets import optim, tree

WEIGHT = {"w": torch.full((3,), 10.0)}
METADATA = {"position": {"epoch": 3, "batch": 17}, "losses": [0.5, 1e-300], "net": "größer"}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


class TrainState(NamedTuple):
    step: Tensor
    params: Any
    state: Any
    opt_state: Any
    key: Tensor


def bits(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(actual: Any, expected: Any) -> None:
    """The same structure, dtypes, shapes and bits (NaNs and negative zeros among them)."""
    actual, expected = tree.flatten(actual), tree.flatten(expected)
    assert actual[1] == expected[1]
    for a, b in zip(actual[0], expected[0], strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))


def as_nested_dicts(values: Any) -> Any:
    return tree.unflatten_named(dict(sorted(tree.flatten_named(values).items())))


def random_bits(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return random_bits(seed, shape, torch.uint8) > 127
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, dtype.itemsize)
    raw = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def train_state(step: int = 100) -> TrainState:
    params = {
        "conv": {
            "weight": random_bits(step, (4, 3, 2, 2), torch.float32),
            "bias": random_bits(step + 1, (4,), torch.bfloat16),
        }
    }
    return TrainState(
        step=torch.tensor(step),
        params=params,
        state={},
        opt_state=optim.adam(optim.linear(0.1, 10)).init(params),
        key=torch.tensor([-1, 7], dtype=torch.int32),
    )
