"""Two of the networks in Flax, with their training step under `jax.jit`; extra `bench-jax`.

Images are in NHWC, as Flax expects them.  JAX and Flax are imported only when a step is made.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.precision import POLICIES

NETWORKS = ("lenet_bn", "resnet18")


def is_installed() -> bool:
    """True if JAX and Flax can be imported."""
    return all(importlib.util.find_spec(name) for name in ("jax", "flax"))


def _lenet(nn: Any, dtype: Any) -> Callable[[Any, Any], Any]:
    def forward(module: Any, x: Any) -> Any:
        for channels in (6, 16):
            x = nn.Conv(channels, (5, 5), padding="VALID", dtype=dtype)(x)
            x = nn.sigmoid(_batch_norm(nn, dtype)(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.sigmoid(_batch_norm(nn, dtype)(nn.Dense(features, dtype=dtype)(x)))
        return nn.Dense(10, dtype=dtype)(x)

    return forward


def _resnet(nn: Any, dtype: Any) -> Callable[[Any, Any], Any]:
    def conv(x: Any, channels: int, kernel: int, stride: int) -> Any:
        padding = (kernel - 1) // 2
        return nn.Conv(channels, (kernel, kernel), (stride, stride), padding=padding, dtype=dtype)(
            x
        )

    def residual(x: Any, channels: int, stride: int) -> Any:
        y = nn.relu(_batch_norm(nn, dtype)(conv(x, channels, 3, stride)))
        y = _batch_norm(nn, dtype)(conv(y, channels, 3, 1))
        return nn.relu(y + (x if x.shape == y.shape else conv(x, channels, 1, stride)))

    def forward(module: Any, x: Any) -> Any:
        x = nn.relu(_batch_norm(nn, dtype)(conv(x, 64, 7, 2)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for channels in (64, 128, 256, 512):
            x = residual(x, channels, 1 if channels == 64 else 2)
            x = residual(x, channels, 1)
        return nn.Dense(10, dtype=dtype)(x.mean((1, 2)))

    return forward


def _batch_norm(nn: Any, dtype: Any) -> Any:
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype)


def step(case: Case, precision: str) -> Callable[[], None]:
    """Return a jitted step of plain SGD, with its state donated."""
    jax, nn = importlib.import_module("jax"), importlib.import_module("flax.linen")
    numpy = jax.numpy
    policy = POLICIES[precision]
    dtype = numpy.dtype(str(policy.compute).removeprefix("torch."))
    # By default JAX rounds the factors of float32 products to TF32 on GPUs.
    product_precision = {"float32": "float32", "tf32": "tensorfloat32"}.get(precision)
    forward = {"lenet_bn": _lenet, "resnet18": _resnet}[case.network](nn, dtype)
    model = type("Model", (nn.Module,), {"__call__": nn.compact(forward)})()
    x = jax.random.uniform(jax.random.key(1), (case.batch_size, case.side, case.side, 1))
    labels = numpy.arange(case.batch_size) % 10

    def loss_of(params: Any, statistics: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": statistics}
        logits, changed = model.apply(variables, x, mutable=["batch_stats"])
        log_probabilities = nn.log_softmax(logits.astype("float32"))
        return -log_probabilities[numpy.arange(len(x)), labels].mean(), changed["batch_stats"]

    def update(params: Any, statistics: Any) -> tuple[Any, Any, Any]:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), grads = gradient(params, statistics)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return params, statistics, loss

    jitted = jax.jit(update, donate_argnums=(0, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]

    def run() -> None:
        nonlocal params, statistics
        with jax.default_matmul_precision(product_precision):
            params, statistics, loss = jitted(params, statistics)
        float(loss)

    return run
