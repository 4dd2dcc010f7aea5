"""Reverse mode by a walk over PyTorch's graph of derivatives, for fake tensors of a GPU.

Without a GPU PyTorch's own engine refuses them, as it asks for the streams of a device.
"""

import torch


def grad(outputs, inputs, grad_outputs=None, **options):
    """Stand in for `torch.autograd.grad`, as `torch.func.grad` calls it."""
    received = {}  # of each node, the gradients of its outputs
    given = grad_outputs or [None] * len(outputs)
    for output, gradient in zip(outputs, given, strict=True):
        gradient = torch.ones_like(output) if gradient is None else gradient
        _add(received, output.grad_fn, output.output_nr, gradient)
    found = {}
    for node in _in_order([output.grad_fn for output in outputs]):
        gradients = received.pop(node, {})
        if hasattr(node, "variable"):
            found[id(node.variable)] = gradients.get(0)
        elif gradients:
            _pass_on(received, node, gradients)
    return tuple(found.get(id(x)) for x in inputs)


def _pass_on(received, node, gradients):
    """Give the nodes before `node` the gradients of their outputs."""
    results = node(*(gradients.get(i) for i in range(len(node._input_metadata))))
    results = results if isinstance(results, tuple) else (results,)
    for (before, i), gradient in zip(node.next_functions, results, strict=True):
        if before is not None and gradient is not None:
            # As the engine does it: formulas leave out the sums over what was broadcast.
            expected = before._input_metadata[i]
            if gradient.shape != expected.shape:
                gradient = gradient.sum_to_size(expected.shape)
            _add(received, before, i, gradient.to(expected.dtype))


def _add(received, node, i, gradient):
    gradients = received.setdefault(node, {})
    gradients[i] = gradients[i] + gradient if i in gradients else gradient


def _in_order(roots):
    """Return all nodes, each after those that give it gradients."""
    seen, done = set(), []
    for root in roots:
        stack = [] if root in seen else [(root, iter(root.next_functions))]
        seen.add(root)
        while stack:
            _, rest = stack[-1]
            before = next((n for n, _ in rest if n is not None and n not in seen), None)
            if before is None:
                done.append(stack.pop()[0])
            else:
                seen.add(before)
                stack.append((before, iter(before.next_functions)))
    return done[::-1]
