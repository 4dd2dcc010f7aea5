"""The classic convolutional networks as pure functions over parameter trees, in PyTorch.

A network is a `Layer`: a frozen record of two pure functions, `init` and `apply`.  Parameters and
batch-norm statistics are nested dicts of tensors, and randomness comes from explicit keys:

    import torch, funcnets
    from funcnets import optim, random, train

    x, y = torch.rand(256, 1, 28, 28), torch.randint(10, (256,))
    net, recipe = funcnets.models.get("resnet18")
    params, state = net.init(random.key(0), x)
    logits, state = net.apply(params, state, x, train=True)

    optimizer = optim.sgd(recipe.learning_rate)
    train_state = train.create(net, optimizer, random.key(0), x)
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0)
    train_state, measured = step(train_state, (x, y))

The package, by layer:

    Layer, sequential, residual, concat, dense     a network, and how layers combine (`core`)
    layers  models  initializers  summary          what networks are made of, and the classic ones
    random  tree                                   keys, as JAX's; trees of tensors
    losses  metrics  optim  precision  train       training as pure functions
    transforms                                     ensembles, per-example gradients, curvature, …
    parallel                                       several processes that train one network
    grad, value_and_grad, vmap, jvp, vjp, hessian  torch.func with JAX's order of results
    jit, Lowering, Trace, TraceError, CompileError one compiled function (`compiler`)
    data  augment  checkpoint  runs                images, files, run directories
    interop  testing                               modules: state dicts, twins, proofs of equality
    plots  timing                                  pictures of a training; fair measurements of time

Each part is imported when it is first used, so `import funcnets` is quick.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from funcnets import (
        augment,
        checkpoint,
        core,
        data,
        initializers,
        interop,
        layers,
        losses,
        metrics,
        models,
        optim,
        parallel,
        plots,
        precision,
        random,
        runs,
        summary,
        testing,
        timing,
        train,
        transforms,
        tree,
    )
    from funcnets.compiler import CompileError, Lowering, Trace, TraceError, jit
    from funcnets.core import Layer, LayerError, concat, dense, residual, sequential
    from funcnets.function_transforms import grad, hessian, jvp, value_and_grad, vjp, vmap

__version__ = "0.1.0"
__all__ = [
    "CompileError",
    "Layer",
    "LayerError",
    "Lowering",
    "Trace",
    "TraceError",
    "augment",
    "checkpoint",
    "concat",
    "core",
    "data",
    "dense",
    "grad",
    "hessian",
    "initializers",
    "interop",
    "jit",
    "jvp",
    "layers",
    "losses",
    "metrics",
    "models",
    "optim",
    "parallel",
    "plots",
    "precision",
    "random",
    "residual",
    "runs",
    "sequential",
    "summary",
    "testing",
    "timing",
    "train",
    "transforms",
    "tree",
    "value_and_grad",
    "vjp",
    "vmap",
]

# Public names that are no modules, by the module that defines them.
_HOMES = {
    **dict.fromkeys(("Layer", "LayerError", "concat", "dense", "residual", "sequential"), "core"),
    **dict.fromkeys(
        ("grad", "hessian", "jvp", "value_and_grad", "vjp", "vmap"), "function_transforms"
    ),
    **dict.fromkeys(("CompileError", "Lowering", "Trace", "TraceError", "jit"), "compiler"),
}


if not TYPE_CHECKING:  # type checkers go by the imports above, and know what isn't there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
        value = getattr(home, name) if name in _HOMES else home
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
