"""Writes jax_recordings.json, the numbers of `jax.random` that the tests compare with.

Needs JAX, which funcnets does not: `pip install jax && python tests/record_jax.py`.
"""

import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np

SEEDS = (0, 42, 2**32 - 1, 2**40 + 17, -5, 2**63 - 1, -(2**63))
TYPES = ("float64", "float32", "float16", "bfloat16")
RANGES = ((0.0, 1.0), (-1.0, 1.0), (-0.3, 0.7), (-0.1234, 0.1234), (0.25, 3.1), (0.0, 0.7))
WEIGHTS = ((6, 1, 5, 5), (16, 6, 5, 5), (10, 84), (3, 7, 1, 1))


def words(array: jax.Array) -> list:
    """Unsigned words as the signed ones of the same bits."""
    return np.asarray(array).view(np.int32).tolist()


def numbers(array: jax.Array) -> list[float]:
    return np.asarray(array).astype(np.float64).ravel().tolist()


def digest(array: jax.Array) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def record_keys() -> list[dict]:
    records = []
    for seed in SEEDS:
        key = jax.random.key(seed)
        chain = [key]
        for data in (0, 7, 2**31 + 3, 2**32 - 1):
            chain.append(jax.random.fold_in(chain[-1], np.uint32(data)))
        records.append(
            {
                "seed": seed,
                "key": words(jax.random.key_data(key)),
                "split": words(jax.random.key_data(jax.random.split(key, 5))),
                "fold_in": [words(jax.random.key_data(link)) for link in chain[1:]],
                "bits": words(jax.random.bits(key, (3, 4), "uint32")),
                "scalar_bits": words(jax.random.bits(key, (), "uint32")),
            }
        )
    return records


def record_uniform() -> list[dict]:
    return [
        {
            "seed": seed,
            "dtype": dtype,
            "range": [low, high],
            "values": numbers(jax.random.uniform(jax.random.key(seed), (11,), dtype, low, high)),
            "digest": digest(jax.random.uniform(jax.random.key(seed), (3000,), dtype, low, high)),
        }
        for seed, dtype in zip((0, 1, 2, 3), TYPES, strict=True)
        for low, high in RANGES
    ]


def record_large() -> dict:
    """Draws of more than one piece."""
    key, shape = jax.random.key(11), (3, 50_021)
    return {
        "seed": 11,
        "shape": shape,
        "bits": digest(jax.random.bits(key, shape, "uint32")),
        "uniform": digest(jax.random.uniform(key, shape, "float32")),
        "symmetric": digest(jax.random.uniform(key, shape, "float32", -0.0123, 0.0123)),
        "bernoulli": digest(jax.random.bernoulli(key, np.float32(0.5), shape)),
    }


def record_normal() -> list[dict]:
    key = jax.random.key(5)
    return [
        {
            "seed": 5,
            "dtype": dtype,
            "normal": numbers(jax.random.normal(key, (100,), dtype)),
            "truncated": numbers(jax.random.truncated_normal(key, -2.0, 2.0, (50,), dtype)),
            "one_sided": numbers(jax.random.truncated_normal(key, 0.5, 3.0, (50,), dtype)),
        }
        for dtype in TYPES
    ]


def record_tails() -> dict:
    """The largest and the smallest of many normal numbers in float32, where rounding shows most."""
    drawn = np.asarray(jax.random.normal(jax.random.key(7), (200_000,), "float32"))
    places = np.argsort(np.abs(drawn), kind="stable")
    places = np.concatenate([places[:50], places[-150:]])
    return {
        "seed": 7,
        "count": 200_000,
        "places": places.tolist(),
        "values": numbers(drawn[places]),
    }


def record_masks() -> list[dict]:
    """Dropout's masks: which of `shape` are kept."""
    records = []
    for seed, keep, shape in ((0, 0.5, (8, 40)), (1, 0.9, (2, 3, 5, 5)), (2, 0.1, (64,))):
        key = jax.random.fold_in(jax.random.key(seed), 3)
        mask = jax.random.bernoulli(key, np.float32(keep), shape)
        kept = "".join("01"[int(value)] for value in np.asarray(mask).ravel())
        records.append({"seed": seed, "fold_in": 3, "p": keep, "shape": shape, "mask": kept})
    return records


DRAWS = 3000
RANGES_OF_INTEGERS = ((0, 10), (-7, 6), (0, 2**31 - 1), (-(2**31), 2**31 - 1), (3, 4))


def record_distributions() -> dict:
    """Integers, classes and choices, and what they are made of."""
    key = jax.random.key(9)
    logits = jax.random.normal(jax.random.key(1), (3, 7), "float32")
    p = np.asarray([0.1, 0.0, 0.4, 0.3, 0.2], "float32")
    return {
        "seed": 9,
        "randint": [
            {
                "range": span,
                "values": np.asarray(jax.random.randint(key, (40,), *span, "int32")).tolist(),
                "digest": digest(jax.random.randint(key, (DRAWS,), *span, "int32")),
            }
            for span in RANGES_OF_INTEGERS
        ],
        "gumbel": {d: numbers(jax.random.gumbel(key, (60,), d)) for d in TYPES},
        "exponential": {d: numbers(jax.random.exponential(key, (60,), d)) for d in TYPES},
        "exact": {
            "gumbel": {"bfloat16": digest(jax.random.gumbel(key, (DRAWS,), "bfloat16"))},
            "exponential": {
                d: digest(jax.random.exponential(key, (DRAWS,), d)) for d in ("float16", "bfloat16")
            },
        },
        "logits": numbers(logits),
        "many_classes": digest(
            jax.random.categorical(key, logits, shape=(DRAWS, 3)).astype("int32")
        ),
        "many_choices": digest(choice(key, 5, (DRAWS,), p=p).astype("int32")),
        "categorical": np.asarray(jax.random.categorical(key, logits, shape=(20, 3))).tolist(),
        "categorical_0": np.asarray(jax.random.categorical(key, logits, axis=0)).tolist(),
        "p": p.tolist(),
        "choice": np.asarray(choice(key, 5, (4, 10))).tolist(),
        "choice_p": np.asarray(choice(key, 5, (4, 10), p=p)).tolist(),
        "choice_p_once": np.asarray(choice(key, 5, (4,), replace=False, p=p)).tolist(),
    }


def choice(key: jax.Array, *args, **options) -> jax.Array:
    """As `jax.random.choice` without `jax_enable_x64`, which draws 32 bits for an integer."""
    with jax.enable_x64(False):
        return jax.random.choice(key, *args, **options)


def record_initial_values() -> list[dict]:
    """Xavier-uniform weights and uniform biases in torch's layout, (out, in, *kernel)."""
    records = []
    for seed, shape in enumerate(WEIGHTS):
        field = math.prod(shape[2:])
        fan_in, fan_out = shape[1] * field, shape[0] * field
        xavier, bias = math.sqrt(6.0 / (fan_in + fan_out)), fan_in**-0.5
        key = jax.random.key(seed)
        weight = jax.random.uniform(key, shape, "float32", -xavier, xavier)
        records.append(
            {
                "seed": seed,
                "shape": shape,
                "weight_start": numbers(weight)[:20],
                "weight": digest(weight),
                "bias_bound": bias,
                "bias": numbers(jax.random.uniform(key, shape[:1], "float32", -bias, bias)),
            }
        )
    return records


def main() -> None:
    # For float64 and the seeds beyond 32 bits; it also widens what has no type of its own.
    jax.config.update("jax_enable_x64", True)
    recordings = {
        "jax": jax.__version__,
        "keys": record_keys(),
        "uniform": record_uniform(),
        "large": record_large(),
        "normal": record_normal(),
        "tails": record_tails(),
        "masks": record_masks(),
        "distributions": record_distributions(),
        "initial_values": record_initial_values(),
    }
    path = Path(__file__).with_name("jax_recordings.json")
    # One record a line keeps the file's changes readable.
    lines = [
        f'"{name}": '
        + (
            "[\n" + ",\n".join(json.dumps(record) for record in value) + "\n]"
            if isinstance(value, list)
            else json.dumps(value)
        )
        for name, value in recordings.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
