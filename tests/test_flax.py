"""Variables of `flax.linen` modules, both ways: each network computes what the other does."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from funcnets import core, interop, layers, random, sequential, tree
from funcnets.interop import InteropError
from funcnets.testing import assert_close, random_like, random_values

CHANNELS, SIDE, CLASSES = 4, 9, 3
X = random.normal(random.key(1), (5, 2, SIDE, SIDE), torch.float64)
# Flax's batch norm has the biased variance as its running variance, and its own momentum.
NET = sequential(
    conv=layers.conv2d(CHANNELS, (3, 2), stride=(1, 2), bias=False),
    norm=layers.batch_norm(0.25, 1e-3, unbiased=False),
    act=layers.relu(),
    grouped=layers.conv2d(6, 3, padding=1, dilation=1, groups=2),
    depthwise=layers.conv2d(6, 2, groups=6),
    pool=layers.max_pool(2),
    flat=layers.flatten(),
    hidden=layers.linear(7),
    norm2=layers.batch_norm(0.25, 1e-3, unbiased=False),
    tanh=layers.tanh(),
    fc=layers.linear(CLASSES),
)
NAMES = {
    "Conv_0": "conv", "BatchNorm_0": "norm", "Conv_1": "grouped", "Conv_2": "depthwise",
    "Dense_0": "hidden", "BatchNorm_1": "norm2", "Dense_1": "fc",
}  # fmt: skip
FROM = {"rename": NAMES, "flattened": {"hidden": (6, 3, 1)}}
TO: dict[str, Any] = {**FROM, "rename": {ours: theirs for theirs, ours in NAMES.items()}}


@pytest.fixture(scope="module")
def jax() -> Any:
    """JAX with float64, for the tests of this module."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def module(jax: Any) -> Any:
    """The same network by flax.linen, for images (N, H, W, C)."""
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.75, epsilon=1e-3)
            options: Any = {"param_dtype": x.dtype, "padding": "VALID"}
            x = nn.Conv(CHANNELS, (3, 2), (1, 2), use_bias=False, **options)(x)
            x = nn.relu(norm(param_dtype=x.dtype)(x))
            same: Any = {**options, "padding": "SAME", "feature_group_count": 2}
            x = nn.Conv(6, (3, 3), **same)(x)
            x = nn.Conv(6, (2, 2), feature_group_count=6, **options)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.Dense(7, param_dtype=x.dtype)(x.reshape(len(x), -1))
            x = nn.tanh(norm(param_dtype=x.dtype)(x))
            return nn.Dense(CLASSES, param_dtype=x.dtype)(x)

    return Net()


def images(jax: Any, x: Tensor) -> Any:
    return jax.numpy.asarray(x.movedim(1, -1).numpy())


def flax_values(jax: Any, module: Any, dtype: torch.dtype, seed: int = 0) -> Any:
    """Variables of Flax's own initialisation, with random statistics and norms, in a dtype."""
    init = jax.jit(partial(module.init, train=False))  # op by op takes longer
    variables = init(jax.random.key(seed), images(jax, X.to(dtype)))
    source = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:  # Flax's statistics are in float32, whatever the input
        noise = source.uniform(0.5, 1.5, leaf.shape).astype(str(dtype)[6:])
        return leaf * noise if leaf.ndim > 1 else noise

    return jax.tree.map(moved, variables)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_a_network_with_the_values_of_flax_computes_what_flax_does(
    jax: Any, module: Any, dtype: str, tolerance: float
) -> None:
    x = X.to(getattr(torch, dtype))
    variables = flax_values(jax, module, x.dtype)
    params, state = interop.from_flax(variables, like=NET.init(random.key(0), x), **FROM)
    assert {leaf.dtype for leaf in tree.leaves((params, state))} == {x.dtype}
    expected = jax.jit(partial(module.apply, train=False))(variables, images(jax, x))
    y, _ = NET.apply(params, state, x)
    assert_close({"": y}, {"": torch.from_numpy(np.array(expected))}, tolerance)


@pytest.mark.slow
def test_gradients_and_statistics_of_training_are_those_of_flax(jax: Any, module: Any) -> None:
    cotangent = random_like(torch.zeros(len(X), CLASSES, dtype=torch.float64), 2)
    variables = flax_values(jax, module, torch.float64)
    params, state = interop.from_flax(variables, **FROM)

    def loss(params: Any, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        y, state = NET.apply(params, state, x, train=True)
        return (y * cotangent).sum(), state

    def flax_loss(params: Any, statistics: Any) -> Any:
        given = {"params": params, "batch_stats": statistics}
        options: Any = {"train": True, "mutable": ["batch_stats"]}
        y, updates = module.apply(given, images(jax, X), **options)
        return (y * cotangent.numpy()).sum(), updates["batch_stats"]

    gradients, after = torch.func.grad(loss, has_aux=True)(params, state, X)
    theirs = jax.jit(jax.grad(flax_loss, has_aux=True))(
        variables["params"], variables["batch_stats"]
    )
    expected = interop.from_flax(dict(zip(("params", "batch_stats"), theirs, strict=True)), **FROM)
    assert_close((gradients, after), expected, 1e-9)


@pytest.mark.slow
def test_flax_computes_with_the_values_of_a_network(jax: Any, module: Any) -> None:
    params, state = random_values(NET, X)
    variables = interop.to_flax(params, state, **TO)
    like = flax_values(jax, module, torch.float64)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(like))
    y = module.apply(variables, images(jax, X), train=False)
    expected, _ = NET.apply(params, state, X)
    assert_close({"": torch.from_numpy(np.array(y))}, {"": expected}, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_come_back_as_they_went(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes")
    params, state = (
        tree.map(lambda leaf: leaf.to(dtype), values) for values in random_values(NET, X)
    )
    assert_close(
        interop.from_flax(interop.to_flax(params, state, **TO), **FROM), (params, state), 0.0
    )


def test_layouts_by_hand() -> None:
    weight, flat = torch.arange(24.0).reshape(2, 3, 2, 2), torch.arange(36.0).reshape(3, 12)
    values = {"conv": {"weight": weight}, "fc": {"weight": flat, "bias": torch.ones(3)}}
    variables = interop.to_flax(values, {}, flattened={"fc": (3, 2, 2)})
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel[1, 0, 2, 0] == weight[0, 2, 1, 0]
    # Feature (h, w, c) = (1, 0, 2) is number 6 of Flax's and number 10 of ours.
    assert variables["params"]["fc"]["kernel"][8, 1] == flat[1, 10]
    assert "batch_stats" not in variables


def kernel(**leaves: Any) -> dict[str, Any]:
    return {"params": {"Dense_0": {"kernel": np.zeros((4, 3), "float32"), **leaves}}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interop.from_flax({"Dense_0": {}}), "^Dense_0: is no collection of variables"),
        (
            lambda: interop.from_flax(kernel(embedding=np.zeros(2))),
            r"^Dense_0\.embedding: expected one of kernel, scale, bias",
        ),
        (
            lambda: interop.from_flax(kernel(bias="zero")),
            r"^Dense_0\.bias: got str, expected an array",
        ),
        (
            lambda: interop.from_flax(kernel(), flattened={"Dense_0": (3, 2, 2)}),
            r"^Dense_0\.weight: takes 4 features; `flattened` gives it \(3, 2, 2\)",
        ),
        (
            lambda: interop.from_flax(kernel(), flattened={"fc": (1, 2, 2)}),
            "^flattened: the network has no linear layer fc",
        ),
        (
            lambda: interop.to_flax({}, {"norm": {"count": torch.zeros(())}}),
            r"^norm\.count: flax\.linen has no counterpart of this leaf of shape \(\)",
        ),
        (
            lambda: interop.to_flax({"norm": {"bias": torch.zeros(2, 3, 3)}}, {}),
            r"^norm\.bias: flax\.linen has no counterpart .* shape \(2, 3, 3\)",
        ),
    ],
)
def test_unknown_variables_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        call()


def test_names_that_do_not_fit_are_listed_and_others_left_out() -> None:
    like = core.to_meta(layers.linear(3).init(random.key(0), torch.ones(1, 4)))
    with pytest.raises(InteropError, match=r"missing: weight, bias|missing: bias, weight"):
        interop.from_flax(kernel(), like=like)
    params, _ = interop.from_flax(
        kernel(embedding="any"),
        rename=lambda name: None if name.endswith("embedding") else name,
    )
    assert tree.names(params) == ["Dense_0.weight"]


@pytest.mark.slow
def test_the_page_for_people_from_jax(jax: Any) -> None:
    pytest.importorskip("optax")
    page = (Path(__file__).parent.parent / "examples" / "guide" / "from_jax.md").read_text()
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    with jax.enable_x64(False):
        exec(compile("\n".join(blocks), "from_jax.md", "exec"), {})
