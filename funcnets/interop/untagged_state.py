"""Refusal of layers whose state changes in a way that no transform of batches knows."""

from torch import Tensor

from funcnets import tree
from funcnets.core import Apply, Layer, LayerError, Params, State, rewrite, wrap
from funcnets.interop.module_apply import ModuleApply
from funcnets.layers import BatchStatistics


def refuse_untagged_state(net: Layer) -> Layer:
    """Return the network, which refuses unknown layers that change their state in training.

    `apply` raises LayerError then.  Known are layers with the tag `layers.BatchStatistics` and
    lifted modules.
    """

    def replaced(name: str | None, layer: Layer) -> Layer:
        return with_constant_state(layer) if layer.tag(BatchStatistics) is None else layer

    return rewrite(net, replaced)


def with_constant_state(layer: Layer) -> Layer:
    """Return the layer, which raises LayerError if it changes its state in training.

    Such a layer may have a batch norm inside that no transform knows of.  Layers with parts are
    made of others; calls of a lifted module are inspected by `interop`.
    """
    if layer.rebuild is not None or isinstance(layer.apply, ModuleApply):
        return layer

    def around(inner: Apply) -> Apply:
        def apply(
            params: Params,
            state: State,
            x: Tensor,
            *,
            train: bool = False,
            key: Tensor | None = None,
        ) -> tuple[Tensor, State]:
            y, after = inner(params, state, x, train=train, key=key)
            before, now = tree.flatten_named(state), tree.flatten_named(after)
            changed = [name for name in now if now[name] is not before.get(name)]
            if train and changed:
                raise LayerError(
                    f"{layer.kind}: training changes its state ({', '.join(changed)}), and it is "
                    "unknown how this depends on the examples of a batch: give a batch norm the "
                    "tag layers.BatchStatistics, or make the layer of parts, by core.combine"
                )
            return y, after

        return apply

    return wrap(layer, around)
