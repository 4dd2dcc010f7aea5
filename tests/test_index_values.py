"""An operation that refuses a value, as an index out of range, refuses it under `jit` too."""

import pytest
import torch
import torch.nn.functional as F
from tensors import numbers
from torch.func import grad, jvp, vjp, vmap

import funcnets
from funcnets import augment, random
from funcnets.compiler.errors import TraceError
from funcnets.compiler.graph import value_errors

GOOD, LARGE, NEGATIVE = (torch.tensor(row) for row in ([0, 2, 1], [0, 7, 1], [0, -9, 1]))
COLUMN = (slice(None), None)


def with_class(classes):
    """Return an operation of a table (3, 4) and an index, of one-hot vectors of the index."""
    return lambda a, i: F.one_hot(i, classes).to(a.dtype) @ a[:1].expand(classes, 4)


def set_rows(a, i):
    copy = a.clone()
    copy[i] = 1.0
    return copy


def mixed(a, i):
    return augment.mixup(3)(random.key(0), a[:, None, None], i)[1]


# Operations of a table (3, 4) and of an index of its rows.
OF_ROWS = {
    "one_hot": with_class(3),
    "aten.one_hot": lambda a, i: torch.ops.aten.one_hot(i, 3) * 2.0,
    "vmap of gather": lambda a, i: vmap(lambda j: a.gather(0, j[None, None]))(i),
    "vmap of index": lambda a, i: vmap(lambda j: a[j])(i),
    "vmap of cross_entropy": lambda a, i: vmap(F.cross_entropy)(a[:, :3], i),
    "mixup": mixed,
    "gather": lambda a, i: a.gather(0, i[COLUMN]),
    "take": lambda a, i: a.take(i * 4),
    "index": lambda a, i: a[i],
    "index by int32": lambda a, i: a[i.int()],
    "two indices": lambda a, i: a[i, i],
    "set": set_rows,
    "index_select": lambda a, i: a.index_select(0, i),
    "embedding": lambda a, i: F.embedding(i, a),
    "embedding_bag": lambda a, i: F.embedding_bag(i[None], a),
    "scatter": lambda a, i: a.scatter(0, i[COLUMN], 1.0),
    "scatter of values": lambda a, i: a.scatter(0, i[COLUMN], a * 2),
    "scatter_add": lambda a, i: a.scatter_add(0, i[COLUMN], a),
    "scatter_reduce": lambda a, i: a.scatter_reduce(0, i[COLUMN], a, "amax"),
    "index_add": lambda a, i: a.index_add(0, i, a),
    "index_copy": lambda a, i: a.index_copy(0, i, a),
    "index_fill": lambda a, i: a.index_fill(0, i, 1.0),
    "index_reduce": lambda a, i: a.index_reduce(0, i, a, "amax"),
    "index_put": lambda a, i: a.index_put((i,), a, accumulate=True),
    "put": lambda a, i: a.put(i * 4, a[:, 0]),
    "nll_loss": lambda a, i: F.nll_loss(a[:, :3], i),
    "nll_loss of images": lambda a, i: F.nll_loss(a[None, :, :3, None], i[None, :, None]),
    "cross_entropy": lambda a, i: F.cross_entropy(a[:, :3], i, label_smoothing=0.1),
    "weighted": lambda a, i: F.cross_entropy(a[:, :3], i, weight=a[0, :3].abs()),
    "multi_margin_loss": lambda a, i: F.multi_margin_loss(a[:, :3], i),
    "max_unpool": lambda a, i: F.max_unpool2d(
        a[:1, None, None, :3], i.view(1, 1, 1, 3), 1, output_size=(1, 3)
    ),
    "gradient of embedding": lambda a, i: vjp(lambda a: F.embedding(i, a), a)[1](a * 2)[0],
    "gradient of index": lambda a, i: grad(lambda a: a[i].square().sum())(a),
    "gradient of gather": lambda a, i: vjp(lambda a: a.gather(0, i[COLUMN]), a)[1](a[:, :1])[0],
    "gradient of cross_entropy": lambda a, i: grad(lambda a: F.cross_entropy(a[:, :3], i))(a),
    "jvp of index": lambda a, i: jvp(lambda a: a[i], (a,), (a,))[1],
    "jvp of cross_entropy": lambda a, i: jvp(lambda a: F.cross_entropy(a[:, :3], i), (a,), (a,))[1],
}
TIMES = torch.tensor([1, 1, 1])
# Operations of values that are refused for other reasons: function, accepted, refused.
OTHERS = {
    "repeat_interleave": (
        lambda a, i: a.repeat_interleave(i, 0, output_size=3),
        TIMES,
        torch.tensor([1, 1, 4]),
    ),
    "masked_scatter": (
        lambda a, i: a.masked_scatter(i[COLUMN] > 1, a[0]),
        GOOD,
        torch.tensor([2, 2, 2]),
    ),
    "assertion": (lambda a, i: (torch._assert_async((i < 3).all()), a + 1)[1], GOOD, LARGE),
    "inverse": (lambda a, i: torch.linalg.inv(torch.diag(i.to(a.dtype))), TIMES, GOOD),
    "division": (lambda a, i: 7 // i, TIMES, GOOD),
    "segment_reduce": (
        lambda a, i: torch.segment_reduce(a, "sum", lengths=i[:2]),
        torch.tensor([1, 2, 0]),
        torch.tensor([5, 2, 0]),
    ),
    "quantile": (lambda a, i: a.quantile(i[0].to(a.dtype) / 2), TIMES, torch.tensor([5, 0, 0])),
}
CASES = {
    **{name: (function, GOOD, (LARGE, NEGATIVE)) for name, function in OF_ROWS.items()},
    **{name: (function, good, (bad,)) for name, (function, good, bad) in OTHERS.items()},
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("backend", ["graph", "native"])
@pytest.mark.parametrize("name", CASES)
def test_a_refused_value_is_refused_under_jit(name, backend):
    function, good, refused = CASES[name]

    def step(a, i):
        return a * 2, function(a, i)

    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)
    expected = step(numbers(3, 4), good)
    torch.testing.assert_close(jitted(numbers(3, 4), good), expected)
    for values in refused:
        if not name.startswith("vmap"):  # PyTorch itself gives zeros for some under vmap
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                function(numbers(3, 4), values)
        donated = numbers(3, 4)
        with pytest.raises((RuntimeError, ValueError)):
            jitted(donated, values)
        torch.testing.assert_close(donated, numbers(3, 4), rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [(), (-1,), (0,)])
def test_a_number_of_classes_that_is_in_the_values_needs_them(arguments):
    with pytest.raises((TraceError, ValueError)):
        funcnets.jit(lambda i: F.one_hot(i, *arguments))(GOOD)


def test_one_hot_of_nothing_and_of_another_type_is_pytorchs():
    nothing = torch.zeros(0, 2, dtype=torch.long)
    assert funcnets.jit(lambda i: F.one_hot(i, 3))(nothing).shape == (0, 2, 3)
    with pytest.raises(RuntimeError, match="LongTensor"):
        funcnets.jit(lambda i: F.one_hot(i, 3))(GOOD.int())


# They read an index that the operation itself, which is kept, or PyTorch, made or checked.
UNCHECKED = (
    "backward",  # of an operation that checked its index
    "nested",
    "sparse",
    "jagged",
    "miopen",
    "cudnn",
    "_cum",  # made by the operation itself
    "fractional",
)
NAMES_OF_INDICES = {"index", "indices", "lengths", "repeats", "sorter"}
HARMLESS = {
    "_index_put_impl",  # functional forms of operations that no graph holds
    "_unsafe_masked_index",
    "_unsafe_masked_index_put_accumulate",
    "min",  # one writes where it finds the minimum, the other's index is a number
    "max",
    "select",
    "select_copy",
    "select_scatter",
    "_convert_indices_from_csr_to_coo",
    "_pack_padded_sequence",  # its lengths are read while a function is traced
}


def test_every_operation_that_takes_an_index_is_known_to_refuse_some():
    """Donated memory is written after the last of these, so a new one has to be listed."""
    listed = value_errors._BY_INDICES | value_errors._BY_DIMENSION.keys() | value_errors._OTHERS
    missing = set()
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        takes_index = any(
            argument.name in NAMES_OF_INDICES and "Tensor" in str(argument.type)
            for argument in schema.arguments
            if not argument.is_out
        )
        if namespace != "aten" or not takes_index or name in listed | HARMLESS:
            continue
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, schema.overload_name or "default", None)
        is_recorded = operation is not None and not operation.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        )
        if is_recorded and not any(part in name for part in UNCHECKED):
            missing.add(name)
    assert missing == set()
