"""`lift`: any `torch.nn.Module` as a `Layer`, a pure function of parameters, state and key."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from funcnets import random, tree
from funcnets._torch import has_backward_hooks, is_compiled, storage_id
from funcnets.core import Init, Layer, LayerError, Params, State, to_meta
from funcnets.interop.inspection import global_generators
from funcnets.interop.keyed_draws import KeyedConstruction
from funcnets.interop.module_copy import Structure, all_leaves, objects_in
from funcnets.interop.module_parts import module_layer
from funcnets.interop.state_dict import from_module
from funcnets.layers.normalization import is_vmapped

Factory = Callable[[], nn.Module]


def lift(source: nn.Module | Factory) -> Layer:
    """Return the `Layer` of a module, or of a function without arguments that makes one.

    `apply` is pure.  It runs private copies of the modules, so it never changes `source`, and
    several threads may call it.  `train=` sets the mode of all modules, whatever theirs is.  Each
    child is a part of the layer, by its name; batch norms and dropouts are such that all transforms
    of this package take the layer as they take one of own layers.

    Parameters and state have the names that the module gives them.  All parameters are params, even
    those that don't require a gradient, and all buffers are state, with `num_batches_tracked` of
    batch norms.  A tensor that has several names has the first of them.

    `init` of a function runs its constructors with draws by the key, on the key's device, and casts
    floating values to the dtype of `x`, those of state to float32 at least.  `init` of a module
    copies its values, as `from_module` does, whatever the key.  Keys replace the global generator
    in a forward pass, too: the i-th draw, or call of a child, in a module has `fold_in(key, i)`.

    A module that mixes the examples of a batch by other means than batch norm isn't recognised:
    `accumulate` and `per_example_gradients` are wrong for it.

    Raises LayerError, from `lift`, `init` or the first call of `apply`, with the path of the
    module, for what can't be a pure function: scripted, compiled and lazy modules, backward hooks,
    `torch.utils.checkpoint`, parameters reached by a closure or a list, random functions that have
    no keyed stand-in, and calls that change parameters, or attributes that are no buffers.

    >>> import torch
    >>> from funcnets import interop, random
    >>> def network():
    ...     return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
    >>> net, x = interop.lift(network), torch.ones(4, 3)
    >>> params, state = net.init(random.key(0), x)
    >>> logits, state = net.apply(params, state, x)
    >>> tuple(logits.shape), list(params)
    ((4, 2), ['0', '1'])
    """
    if isinstance(source, nn.Module):
        return module_layer(_structure(source), _init_by_copy(source), is_root=True)
    if not callable(source):
        raise TypeError(
            f"lift: got {source!r}, expected a torch.nn.Module, or a function without arguments "
            "that makes one"
        )
    try:
        first = _construct(source, None)
    except (LayerError, TypeError):
        raise
    except Exception:  # zeros are no orthogonal matrix, say; an error of its own is raised again
        first = _construct(source, random.key(0))
    structure = _structure(first)
    init = _init_by_construction(source, structure, weakref.ref(first))
    return module_layer(structure, init, is_root=True)


def _init_by_copy(module: nn.Module) -> Init:
    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        values = from_module(module)
        return to_meta(values) if key.is_meta else values

    return init


def _init_by_construction(
    factory: Factory, structure: Structure, first: "weakref.ref[nn.Module]"
) -> Init:
    def init(key: Tensor, x: Tensor) -> tuple[Params, State]:
        if key.is_meta:
            leaves = structure.params, structure.buffers
        elif type(key) is not Tensor or is_vmapped(key):
            raise LayerError(
                "lift: init runs constructors of modules, so it can't run under vmap or jit: call "
                "it for each key, and use funcnets.transforms.ensemble.stack"
            )
        else:
            module = _construct(factory, key)
            _check_repeated(module, first(), structure)
            leaves = dict(module.named_parameters()), dict(module.named_buffers())
        precise = torch.promote_types(x.dtype, torch.float32)
        dtypes = (x.dtype, precise) if x.is_floating_point() else (None, None)
        params, state = map(_cast, leaves, dtypes)
        return params, state

    return init


def _cast(leaves: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Any]:
    """Return a tree of the leaves, the floating ones in `dtype`, if there is one."""
    return tree.unflatten_named(
        {
            name: leaf.detach().to(dtype if dtype and leaf.is_floating_point() else leaf.dtype)
            for name, leaf in leaves.items()
        }
    )


def _construct(factory: Factory, key: Tensor | None) -> nn.Module:
    """Return the module that `factory` makes, with draws by the key, or zeros if there is none."""
    before = global_generators()
    with torch.device("cpu" if key is None else key.device), KeyedConstruction(key):
        module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(f"lift: the function returned {module!r}, expected a torch.nn.Module")
    if global_generators() != before:
        raise LayerError(
            "lift: a constructor seeds a global generator of PyTorch, NumPy or Python, or draws "
            "from it by other means than functions of PyTorch, so a key can't decide its values "
            "(if another thread drew meanwhile, call again)"
        )
    return module


def _check_repeated(module: nn.Module, first: nn.Module | None, structure: Structure) -> None:
    """Raise LayerError unless `module` differs from the first one in the values of leaves alone."""
    if module is first:
        raise LayerError(
            "lift: the function returned one module twice, so a key can't decide its values: "
            "construct it in the function, or lift the module itself"
        )
    new = Structure.of(module)
    difference = tree.difference(new.params | new.buffers, structure.params | structure.buffers)
    if difference is not None:
        name, found, expected = difference
        raise LayerError(f"lift: {name} is {found}, and was {expected} when the function ran first")
    constants = dict(structure.constants())
    for name, value in new.constants():
        if not torch.equal(value.cpu(), constants[name].cpu()):
            raise LayerError(
                f"lift: `{name}` has other values in each module, and is neither parameter nor "
                "buffer: register it as a buffer"
            )


def _structure(module: nn.Module) -> Structure:
    """Return the structure of a module.

    Raises LayerError for what can't be lifted, by the path of the module that has it.
    """
    memory: dict[int, str] = {}
    registered = {id(known) for known in (*module.modules(), *all_leaves(module))}
    for path, part in module.named_modules():
        if (problem := _problem(part) or _foreign(part, registered)) is not None:
            names = tuple(path.split(".")) if path else ()
            raise LayerError(f"lift: {type(part).__name__} {problem}", names)
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        other = memory.setdefault(storage_id(leaf), name)
        if other != name:
            raise LayerError(
                f"lift: {name} and {other} share memory, and are two tensors: make one of them, "
                "which both names stand for, or clone one"
            )
    return Structure.of(module)


def _problem(module: nn.Module) -> str | None:
    """Return the reason for which this module, apart from its children, can't be lifted."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted: lift the module that it was made of"
    if is_compiled(module):
        return "is compiled: lift the module itself, and use funcnets.jit"
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return "is a wrapper for several devices: lift its `module`"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "is lazy and has no shapes yet: run it once on an example"
    if has_backward_hooks(module):
        return "has backward hooks, which run outside of a pure function: remove them"
    if "forward" in vars(module):
        return "has a forward of its own, assigned to this object: define it in a class"
    if type(module).train is not nn.Module.train:
        return "overrides train(), and apply sets the mode of all modules by train=: leave it out"
    return None


def _foreign(module: nn.Module, registered: set[int]) -> str | None:
    """Return the reason if an attribute has parameters in it that the whole doesn't have."""
    for name, value in vars(module).items():
        for item in objects_in(value):
            is_trained = isinstance(item, Tensor) and item.requires_grad
            if (is_trained or isinstance(item, nn.Module)) and id(item) not in registered:
                return (
                    f"keeps a {type(item).__name__} in `{name}` that isn't registered, so it would "
                    "get no update: use nn.ModuleList, nn.ModuleDict, nn.ParameterList or "
                    "nn.Parameter"
                )
    return None
