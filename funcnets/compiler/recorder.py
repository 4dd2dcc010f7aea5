"""Recording: the ATen operations of a function, as they are called for fake tensors.

PyTorch's own `make_fx` gives the same graphs, and takes longer, as it records for symbols too.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from funcnets import _torch, tree
from funcnets._torch import DispatchMode, get_proxy_mode
from funcnets.compiler.errors import LEFT_OF_TRACE, is_left_of_trace

aten = torch.ops.aten
Rewrite = Callable[..., Any]  # gives NotImplemented where it leaves the operation alone


def record(
    function: Callable[..., Sequence[Tensor]],
    leaves: Iterable[Tensor],
    rewrites: Mapping[Any, Rewrite],
) -> fx.GraphModule:
    """Return the graph of `function(*leaves)`, which runs on fake tensors: nothing is computed.

    An operation in `rewrites` is recorded as the operations that its rewrite calls.  Tensors that
    the function captures are attributes of the module.  Each node's `meta["val"]` is its result for
    fake tensors.
    """
    recording = Recording(rewrites)
    leaves = list(leaves)
    # A tensor that is given twice is one argument.
    made = {id(leaf): recording.argument(leaf) for leaf in leaves}
    fakes = [made[id(leaf)] for leaf in leaves]
    with recording.shapes, recording:
        results = function(*fakes)
    recording.graph.output([recording.node(result) for result in results])
    # Its code is written when somebody asks for it, not after each change.
    return _torch.lazy_graph_module(recording.captured, recording.graph)


def record_by_make_fx(
    function: Callable[..., Sequence[Tensor]],
    leaves: Iterable[Tensor],
    rewrites: Mapping[Any, Rewrite],
) -> fx.GraphModule:
    """Return the graph that `record` gives, by PyTorch's own tracer alone; takes longer."""
    table: Any = dict(rewrites)
    leaves = list(leaves)
    trace = _torch.make_fx(function, table, tracing_mode="fake", _allow_non_fake_inputs=True)
    # A view is not given, as in `record`; a tensor that is given twice is one argument.
    made = {id(leaf): _empty_like(leaf) if _torch.is_view(leaf) else leaf for leaf in leaves}
    module: fx.GraphModule = trace(*(made[id(leaf)] for leaf in leaves))
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.detach.default:  # the same tensor, as graphs know no derivatives
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "get_attr":
            node.meta.setdefault("val", getattr(module, node.target))
        elif node.op == "call_function":
            node.meta.setdefault("val", None)  # what is no tensor, as a comparison of shapes
    (end,) = graph.find_nodes(op="output")
    end.args = (list(end.args[0]),)
    module.recompile()
    return module


def _empty_like(leaf: Tensor) -> Tensor:
    """Return a tensor of this shape and these strides that is no view.

    PyTorch refuses some views of fake tensors that are views themselves in forward mode.
    """
    like = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return like.requires_grad_(leaf.requires_grad)


def is_recording() -> bool:
    """True if operations that are called now are recorded."""
    return any(isinstance(mode, Recording) for mode in _torch.dispatch_modes())


def recorded_operations() -> int:
    """Return how many nodes the innermost recording has by now; 0 where nothing is recorded."""
    recordings = [mode for mode in _torch.dispatch_modes() if isinstance(mode, Recording)]
    return len(recordings[-1].graph.nodes) if recordings else 0


def shaped(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on fake tensors."""
    tensors = [leaf for leaf in tree.leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    # Numbers that are known, as they are written in the function, fake tensors keep track of.
    fakes = [
        leaf for leaf in tensors if isinstance(leaf, _torch.FakeTensor) and leaf.constant is None
    ]
    devices = {tensor.fake_device for tensor in fakes}
    is_plain = _is_plain(operation) and len(devices) == 1 and len(fakes) == len(tensors)
    if not is_plain or get_proxy_mode() is not None:  # as in torch.func.linearize, which traces
        return operation(*args, **kwargs)
    shapes = fakes[0].fake_mode
    with _torch.in_kernel_invocation(shapes):
        result = operation(*args, **kwargs)

    def fake(leaf: Any) -> Any:
        is_made = isinstance(leaf, Tensor) and not isinstance(leaf, _torch.FakeTensor)
        return _torch.FakeTensor(shapes, leaf, *devices) if is_made else leaf

    return tree.map(fake, result)


def _is_plain(operation: Any) -> bool:
    """True if ATen itself, or funcnets, computes shapes and strides for the operation.

    Fake tensors ask the same in the end, after far more Python than the answer takes.
    """
    is_plain = operation.is_view or torch.Tag.pointwise in operation.tags
    return is_plain or operation.namespace == "funcnets"


class Recording(DispatchMode):
    """Mode that records operations as nodes of `graph`, beneath all transforms."""

    def __init__(self, rewrites: Mapping[Any, Rewrite]) -> None:
        super().__init__()
        # Raises where a value is needed; tensors that are captured count as fake ones.
        self.shapes = _torch.FakeTensorMode(allow_non_fake_inputs=True)
        self.graph = fx.Graph()
        self.captured: dict[str, Any] = {}
        self._rewrites = rewrites
        self._nodes = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be wrapped, for compilers that never see it, at a cost

    def argument(self, leaf: Tensor) -> Tensor:
        """Add an argument to the graph, and return a fake tensor like `leaf` for it."""
        node = self.graph.placeholder(f"argument{len(self.graph.nodes)}")
        with self.shapes:
            fake = _empty_like(leaf)
        self._note(fake, node)
        return fake

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node whose result a tensor is; a tensor of no node was captured."""
        node: fx.Node | None = self._nodes.get(tensor)
        if node is None:
            if is_left_of_trace(tensor):
                # Of a TypeError Python's operators would make one of their own.
                raise ValueError(f"jit: a tensor that the function captures {LEFT_OF_TRACE}")
            name = f"captured{len(self.captured)}"
            self.captured[name] = tensor
            node = self._nodes[tensor] = self.graph.get_attr(name)
            with self.shapes:
                node.meta["val"] = _empty_like(tensor)
        return node

    def _fake(self, value: Any) -> Any:
        """Return the fake tensor for one that was captured; anything else as it is."""
        if isinstance(value, _torch.FakeTensor) and value.fake_mode is self.shapes:
            return value
        return self.node(value).meta["val"] if isinstance(value, Tensor) else value

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.prim.device.default:
            return operation(*args)
        with self, _torch.DisableAutocast():  # above this, casts are operations already
            result = self._rewritten(operation, args, kwargs)
        if result is not NotImplemented:
            return result
        if torch.Tag.data_dependent_output in operation.tags:
            return self._value(operation, args, kwargs)
        if operation is aten.lift_fresh.default:
            operation = aten.lift_fresh_copy.default  # the captured value may be written to
        if torch.Tag.inplace_view in operation.tags:
            return self._viewed_in_place(operation, args, kwargs)
        is_constant = operation is aten.lift_fresh_copy.default  # fake tensors keep its numbers
        faked = (args, kwargs) if is_constant else tree.map(self._fake, (args, kwargs))
        try:
            result = shaped(operation, *faked)
        except RuntimeError:
            if operation is not aten.view.default:
                raise
            # A rewrite chose strides that the function doesn't know, as channels_last for a map.
            operation = aten._reshape_copy.default
            result = shaped(operation, *faked)
        if operation is aten.detach.default:  # the same tensor, as graphs know no derivatives
            self._nodes[result] = self.node(*args)
        else:
            self._note(result, self._called(operation, args, kwargs))
        return result

    def _rewritten(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation in self._rewrites:
            result = self._rewrites[operation](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if operation.has_kernel_for_dispatch_key(_torch.DispatchKey.CompositeImplicitAutograd):
            return operation.decompose(*args, **kwargs)
        return NotImplemented

    def _viewed_in_place(
        self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A tensor of which only the shape changes: from then on it is what a view of it gives."""
        # The node that gave it should tell of it as it was.
        self.node(args[0]).meta["val"] = args[0].detach()
        node = self._called(operation, args, kwargs)
        packet = getattr(aten, operation.overloadpacket.__name__.removesuffix("_"), None)
        node.target = getattr(packet, operation._overloadname, operation)
        result = shaped(operation, args, kwargs)
        self._note(result, node)
        return result

    def _value(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A number that is read out of what is captured, or known as it is made of a number."""
        if any(isinstance(leaf, _torch.FakeTensor) for leaf in tree.leaves((args, kwargs))):
            return operation(*args, **kwargs)  # raises, unless it is known
        with _torch.unset_fake_temporarily():
            return operation(*args, **kwargs)

    def _called(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        args, kwargs = fx.node.map_aggregate((args, kwargs), self._node_or_value)
        name = operation.overloadpacket.__name__
        return self.graph.create_node("call_function", operation, args, kwargs, name)

    def _node_or_value(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, Tensor) else value

    def _note(self, result: Any, node: fx.Node) -> None:
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if part is not None:
                    self._note(part, self.graph.call_function(operator.getitem, (node, i)))
