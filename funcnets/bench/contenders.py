"""The training steps that are compared: by funcnets, by `nn.Module`, and by Flax."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from funcnets import models, optim, parallel, random, timing, train
from funcnets.bench import flax_models
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.compiler import jit, keep_memory
from funcnets.compiler.backends.cuda import products
from funcnets.compiler.backends.select import Backend
from funcnets.parallel import Axis
from funcnets.precision import POLICIES, in_channels_last
from funcnets.testing import twins
from funcnets.train import Batch, TrainState, TrainStep

ONE_PROCESS = Axis()

Contender = Callable[[], object]
"""One training step at each call, on the same batch; it returns the loss, without a wait for it."""


def train_step(
    case: Case, precision: str, axis: Axis = ONE_PROCESS
) -> tuple[TrainStep, TrainState, Batch]:
    """Return the step of `funcnets train`, its first state, and this process's share of a batch."""
    net, _ = models.get(case.network)
    optimizer, (images, labels) = optim.sgd(LEARNING_RATE), case.batch()
    train_state = train.create(net, optimizer, random.key(0, case.device), images)
    policy, gradient = POLICIES[precision], parallel.gradient(axis)
    step = train.make_train_step(net, optimizer, policy=policy, gradient=gradient)
    return step, train_state, (axis.shard(images), axis.shard(labels))


def functional_step(
    case: Case,
    precision: str,
    *,
    backend: Backend | None,
    channels_last: bool = False,
    axis: Axis = ONE_PROCESS,
) -> Contender:
    """Return the step of `funcnets train`, compiled, with its state donated."""
    step, train_state, batch = train_step(case, precision, axis)
    if channels_last:
        train_state, batch = in_channels_last((train_state, batch))
    name = f"bench {case.network} {precision}{axis if axis.size > 1 else ''}"
    tf32 = POLICIES[precision].tf32
    keep_memory()  # as the command line does
    jitted = jit(step, donate_argnums=0, backend=backend, saved_as=name, tf32=tf32)
    return timing.repeat(jitted, train_state, batch)


def module_step(
    case: Case,
    precision: str,
    *,
    channels_last: bool = False,
    **compilation: Any,
) -> Contender:
    """Return the step of a usual training loop on the same network as an `nn.Module`.

    bfloat16 is by autocast.  With options of `torch.compile` the module is compiled.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module = twins.get(case.network).to(case.device).to(memory_format=memory_format)
    images, labels = case.batch()
    images = images.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    forward = torch.compile(module, dynamic=False, **compilation) if compilation else module
    device_type, tf32 = torch.device(case.device).type, POLICIES[precision].tf32

    def run() -> Tensor:
        if compilation.get("mode") is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with products(tf32=tf32):
            with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.cross_entropy(forward(images), labels)
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


# The back ends of funcnets by column; None is the default one of the device.
BACKENDS: dict[str, Backend | None] = {"jit": None, "graph": "graph", "inductor": "inductor"}
FUNCTIONS: dict[str, Callable[[Case, str], Contender]] = {
    column: partial(functional_step, backend=backend) for column, backend in BACKENDS.items()
}
# Of GPUs alone: there the memory format of the arguments is that of the convolutions.
FUNCTIONS_IN_CHANNELS_LAST: dict[str, Callable[[Case, str], Contender]] = {
    f"{column}-last": partial(functional_step, backend=backend, channels_last=True)
    for column, backend in BACKENDS.items()
}
MODULES: dict[str, Callable[[Case, str], Contender]] = {
    "eager": module_step,
    "eager-last": partial(module_step, channels_last=True),
    "compiled": partial(module_step, mode="default"),
    "compiled-last": partial(module_step, mode="default", channels_last=True),
}
# Of GPUs alone: modules whose forward and backward passes are CUDA graphs.
MODULES_IN_GRAPHS: dict[str, Callable[[Case, str], Contender]] = {
    "reduce-overhead": partial(module_step, mode="reduce-overhead"),
    "reduce-overhead-last": partial(module_step, mode="reduce-overhead", channels_last=True),
    "max-autotune": partial(module_step, mode="max-autotune"),
}
COLUMNS = FUNCTIONS | MODULES | {"flax": flax_models.step}
# Not Flax, as JAX keeps the memory of a GPU from others.
GPU_COLUMNS = FUNCTIONS | FUNCTIONS_IN_CHANNELS_LAST | MODULES | MODULES_IN_GRAPHS


UNCOMPILED = ("graph", "graph-last", "eager", "eager-last")  # columns whose first step is quick
AUTOTUNED = ("lenet_bn", "resnet18")  # of the others, autotuning takes many minutes


def available_columns(columns: Sequence[str], network: str) -> list[str]:
    """Return those of `columns` that exist for `network`: `flax` needs Flax, and its model."""
    missing = set()
    if network not in flax_models.NETWORKS or not flax_models.is_installed():
        missing.add("flax")
    if network not in AUTOTUNED:
        missing.add("max-autotune")
    return [column for column in columns if column not in missing]
