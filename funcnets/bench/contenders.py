"""The training steps that are compared: by funcnets, by `nn.Module`, and by Flax."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from funcnets import models, optim, random, timing, train
from funcnets.bench import flax_models
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.compiler import jit
from funcnets.compiler.backends.cuda import products
from funcnets.compiler.backends.select import Backend
from funcnets.precision import POLICIES
from funcnets.testing import twins

Contender = Callable[[], object]
"""One training step at each call, on the same batch; it returns when the step is done."""


def functional_step(case: Case, precision: str, *, backend: Backend | None) -> Contender:
    """Return the step of `funcnets train`, with its state donated."""
    net, _ = models.get(case.network)
    optimizer, batch = optim.sgd(LEARNING_RATE), case.batch()
    train_state = train.create(net, optimizer, random.key(0, case.device), batch[0])
    policy = POLICIES[precision]
    step = train.make_train_step(net, optimizer, policy=policy)
    name = f"bench {case.network} {precision}"
    jitted = jit(step, donate_argnums=0, backend=backend, saved_as=name, tf32=policy.tf32)
    return timing.repeat(jitted, train_state, batch)


def module_step(
    case: Case, precision: str, *, compiled: bool = False, channels_last: bool = False
) -> Contender:
    """Return the step of a usual training loop on the same network as an `nn.Module`.

    bfloat16 is by autocast.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module = twins.get(case.network).to(case.device).to(memory_format=memory_format)
    images, labels = case.batch()
    images = images.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    forward = torch.compile(module, dynamic=False) if compiled else module
    device_type, tf32 = torch.device(case.device).type, POLICIES[precision].tf32

    def run() -> float:
        with products(tf32=tf32):
            with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.cross_entropy(forward(images), labels)
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


# The back ends of funcnets by column; None is the default one of the device.
BACKENDS: dict[str, Backend | None] = {"jit": None, "graph": "graph", "inductor": "inductor"}
FUNCTIONS: dict[str, Callable[[Case, str], Contender]] = {
    column: partial(functional_step, backend=backend) for column, backend in BACKENDS.items()
}
MODULES: dict[str, Callable[[Case, str], Contender]] = {
    "eager": module_step,
    "eager-last": partial(module_step, channels_last=True),
    "compiled": partial(module_step, compiled=True),
    "compiled-last": partial(module_step, compiled=True, channels_last=True),
}
COLUMNS = FUNCTIONS | MODULES | {"flax": flax_models.step}


def available_columns(columns: Sequence[str], network: str) -> list[str]:
    """Return those of `columns` that exist for `network`: `flax` needs Flax, and its model."""
    has_flax = network in flax_models.NETWORKS and flax_models.is_installed()
    return [column for column in columns if column != "flax" or has_flax]
