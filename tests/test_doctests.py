"""Examples in docstrings: all of them run, and the main public functions have one."""

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import funcnets

PACKAGE = Path(funcnets.__file__).parent


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


EXAMPLES = {
    name_of(path).removesuffix(".__init__"): text.count(">>> ")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in (text := path.read_text(encoding="utf-8"))
}
WITH_EXAMPLE = {
    "checkpoint": {"save", "step_path"},
    "compiler.api": {"jit"},
    "core": {"Layer", "combine", "eval_shape", "residual", "rewrite", "sequential", "wrap"},
    "data": {"batches", "load", "prepare", "read_idx", "shuffle"},
    "interop": {
        "from_flax",
        "from_state_dict",
        "to_flax",
        "to_module",
        "to_state_dict",
        "transplant",
    },
    "function_transforms": {"grad", "hessian", "jvp", "value_and_grad", "vjp", "vmap"},
    "initializers": {"fans", "variance_scaling"},
    "layers": {"batch_norm", "conv2d", "dropout", "flatten", "leaf", "linear", "max_pool"},
    "losses": {"cross_entropy"},
    "metrics": {"Running", "correct"},
    "models": {"get"},
    "optim": {"adam", "chain", "masked", "partition", "private", "sgd"},
    "optim.schedules": {"cosine", "linear", "one_cycle", "step_decay", "warmup"},
    "parallel": {"Axis", "check_replicas", "hash_leaves"},
    "precision": {"cast"},
    "random": {"choice", "fold_in", "key", "normal", "permutation", "split", "uniform"},
    "summary": {"summarize"},
    "testing": {"assert_close", "assert_equivalent", "assert_trains_alike", "check_layer"},
    "testing.twins": {"get"},
    "timing": {"interleave"},
    "train": {"create", "evaluate", "fit", "make_train_step"},
    "transforms": {"accumulate", "averaged", "capture", "check_finite", "frozen_statistics"},
    "transforms.curvature": {"gauss_newton_product", "hessian_product", "hutchinson_trace"},
    "transforms.ensemble": {"create", "jit_step", "stack"},
    "transforms.laplace": {"fit"},
    "transforms.per_example": {"per_example_gradients"},
    "transforms.remat": {"remat"},
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0  # what was expected and what came is in the captured output
    assert results.attempted == EXAMPLES[module], "doctest doesn't find all of the examples"


def has_example(value: Any) -> bool:
    return bool(doctest.DocTestParser().get_examples(value.__doc__ or ""))


@pytest.mark.parametrize("module", WITH_EXAMPLE)
def test_main_public_names_have_an_example(module: str) -> None:
    names = vars(importlib.import_module(f"funcnets.{module}"))
    assert [name for name in WITH_EXAMPLE[module] if not has_example(names[name])] == []
