"""Random programs of tensor operations, each known by a number, for comparisons of back ends."""

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

FLOAT64 = torch.float64
MOST_ELEMENTS = 600
SHAPES = [(3, 4), (4,), (2, 3, 4), (2, 4, 5, 5), (1, 3), (6, 2), (), (0, 4), (2, 0, 3)]


def _step(fraction):
    """Round a fraction of one, so that a program reads it as a number of its own."""
    return round(fraction * 4 - 2, 2)


def _in_place(change):
    """Return an operation that changes a copy of its operand."""

    def operation(x, y, t):
        copy = x.clone()
        change(copy, y, t)
        return copy

    return operation


def _set_row(copy, y, t):
    copy[0] = t


def _add_to_view(copy, y, t):
    copy.view(-1)[: copy.numel() // 2].add_(t)


def _shift_transposed(copy, y, t):
    copy.transpose(0, -1).mul_(t)


def _shape_in_place(copy, y, t):
    copy.unsqueeze_(0)


def _is_image(x):
    return x.ndim == 4 and min(x.shape) > 1


def _convolution(x, y, t):
    weight = torch.full((2, x.shape[1], 3, 3), t / 9, dtype=x.dtype)
    return F.conv2d(x, weight, padding=1)


def _batch_norm(x, y, t):
    return F.batch_norm(x, None, None, training=True)


def _masked(fill):
    return lambda x, y, t: x.masked_fill(x > t, fill)


def _dim(x, t):
    return int(abs(t) * 100) % x.ndim


# name -> (condition for the operand x, function of operands x and y and of a number t)
ANY, NOT_EMPTY, HAS_DIM, MATRIX = (
    lambda x: True,
    lambda x: x.numel() > 0,
    lambda x: x.ndim > 0 and x.numel() > 0,
    lambda x: x.ndim == 2,
)
UNARY = {
    "sin": (ANY, lambda x, y, t: x.sin()),
    "tanh": (ANY, lambda x, y, t: torch.tanh(x)),
    "sigmoid": (ANY, lambda x, y, t: torch.sigmoid(x)),
    "relu": (ANY, lambda x, y, t: torch.relu(x)),
    "gelu": (ANY, lambda x, y, t: F.gelu(x)),
    "softplus": (ANY, lambda x, y, t: F.softplus(x)),
    "leaky": (ANY, lambda x, y, t: F.leaky_relu(x, 0.1)),
    "abs": (ANY, lambda x, y, t: x.abs()),
    "square": (ANY, lambda x, y, t: x.tanh().square()),
    "root": (ANY, lambda x, y, t: (x.abs() + 1).sqrt()),
    "log1p": (ANY, lambda x, y, t: x.abs().log1p()),
    "exp": (ANY, lambda x, y, t: x.clamp(max=1).exp()),
    "neg": (ANY, lambda x, y, t: -x),
    "scale": (ANY, lambda x, y, t: x * t),
    "shift": (ANY, lambda x, y, t: x + t),
    "subtract from": (ANY, lambda x, y, t: t - x),
    "times zero": (ANY, lambda x, y, t: x * 0),
    "quotient of a number": (ANY, lambda x, y, t: t / (x.square() + 1)),
    "power": (ANY, lambda x, y, t: torch.sin(x) ** 3),
    "clamp": (ANY, lambda x, y, t: x.clamp(-abs(t), abs(t))),
    "no derivative": (ANY, lambda x, y, t: x.detach() * 2),
    "constant": (ANY, lambda x, y, t: torch.full_like(x, t)),
    "sign": (ANY, lambda x, y, t: x.sign()),
    "clone": (ANY, lambda x, y, t: x.clone()),
    "finite": (ANY, lambda x, y, t: torch.nan_to_num(x, t, 1.0, -1.0)),
    "float32": (ANY, lambda x, y, t: x.float().sin().double()),
    "mask -inf": (ANY, _masked(-torch.inf)),
    "mask inf": (ANY, _masked(torch.inf)),
    "mask 0": (ANY, _masked(0.0)),
    "where": (ANY, lambda x, y, t: torch.where(x > t, x, t * x)),
}
REDUCTIONS = {
    "sum": (ANY, lambda x, y, t: x.sum()),
    "sum of a dimension": (HAS_DIM, lambda x, y, t: x.sum(_dim(x, t), keepdim=t > 0)),
    "mean": (HAS_DIM, lambda x, y, t: x.mean(_dim(x, t))),
    "variance": (HAS_DIM, lambda x, y, t: x.var(_dim(x, t), correction=0)),
    "max": (HAS_DIM, lambda x, y, t: x.amax(_dim(x, t), keepdim=t > 0)),
    "max and place": (HAS_DIM, lambda x, y, t: x.max(_dim(x, t))[0]),
    "logsumexp": (HAS_DIM, lambda x, y, t: x.logsumexp(_dim(x, t))),
    "softmax": (HAS_DIM, lambda x, y, t: torch.softmax(x, _dim(x, t))),
    "log_softmax": (HAS_DIM, lambda x, y, t: torch.log_softmax(x, _dim(x, t))),
    "cumsum": (HAS_DIM, lambda x, y, t: x.cumsum(_dim(x, t))),
    "prod": (HAS_DIM, lambda x, y, t: x.tanh().prod(_dim(x, t))),
    "norm": (NOT_EMPTY, lambda x, y, t: (x.tanh().square().sum() + 1).sqrt()),
    "sort": (HAS_DIM, lambda x, y, t: x.sort(_dim(x, t))[0]),
}
VIEWS = {
    "transpose": (HAS_DIM, lambda x, y, t: x.transpose(0, -1)),
    "flat": (ANY, lambda x, y, t: x.reshape(-1)),
    "two rows": (lambda x: x.numel() % 2 == 0 and x.numel() > 0, lambda x, y, t: x.reshape(2, -1)),
    "row": (HAS_DIM, lambda x, y, t: x[-1]),
    "slice": (HAS_DIM, lambda x, y, t: x[1:]),
    "every second": (HAS_DIM, lambda x, y, t: x[..., ::2]),
    "narrow": (HAS_DIM, lambda x, y, t: x.narrow(_dim(x, t), 0, 1)),
    "unsqueeze": (lambda x: x.ndim < 4, lambda x, y, t: x.unsqueeze(0)),
    "squeeze": (ANY, lambda x, y, t: x.squeeze()),
    "expand": (lambda x: x.ndim < 4, lambda x, y, t: x.expand(2, *x.shape)),
    "chunk": (HAS_DIM, lambda x, y, t: x.chunk(2, _dim(x, t))[0]),
    "diagonal": (MATRIX, lambda x, y, t: x.diagonal()),
    "flip": (HAS_DIM, lambda x, y, t: x.flip(_dim(x, t))),
    "roll": (HAS_DIM, lambda x, y, t: x.roll(1, _dim(x, t))),
    "stack": (lambda x: x.ndim < 4, lambda x, y, t: torch.stack([x, x * t])),
    "cat": (HAS_DIM, lambda x, y, t: torch.cat([x, -x], _dim(x, t))),
    "contiguous": (ANY, lambda x, y, t: x.contiguous()),
    "gather": (HAS_DIM, lambda x, y, t: x[torch.zeros(2, dtype=torch.long)]),
    "as images": (_is_image, lambda x, y, t: x.contiguous(memory_format=torch.channels_last)),
}
IN_PLACE = {
    "add_": (ANY, _in_place(lambda copy, y, t: copy.add_(t))),
    "mul_": (ANY, _in_place(lambda copy, y, t: copy.mul_(t))),
    "relu_": (ANY, _in_place(lambda copy, y, t: copy.relu_())),
    "set a row": (HAS_DIM, _in_place(_set_row)),
    "add to a view": (ANY, _in_place(_add_to_view)),
    "scale the transpose": (HAS_DIM, _in_place(_shift_transposed)),
    "fill": (ANY, _in_place(lambda copy, y, t: copy.fill_(t))),
    "unsqueeze_": (lambda x: x.ndim < 4, _in_place(_shape_in_place)),
}
IMAGES = {
    "convolution": (_is_image, _convolution),
    "batch norm": (_is_image, _batch_norm),
    "max pool": (
        lambda x: _is_image(x) and min(x.shape[2:]) > 1,
        lambda x, y, t: F.max_pool2d(x, 2),
    ),
    "average pool": (
        lambda x: _is_image(x) and min(x.shape[2:]) > 1,
        lambda x, y, t: F.avg_pool2d(x, 2),
    ),
}
BINARY = {
    "add": lambda x, y, t: x + y,
    "subtract": lambda x, y, t: x - y,
    "subtract a multiple": lambda x, y, t: torch.sub(x, y, alpha=t),
    "multiply": lambda x, y, t: x * y,
    "divide": lambda x, y, t: x / (y.abs() + 1),
    "maximum": lambda x, y, t: torch.maximum(x, y),
    "choose": lambda x, y, t: torch.where(x > y, x * t, y),
    "lerp": lambda x, y, t: torch.lerp(x, y.expand_as(x), 0.25),
    "addcmul": lambda x, y, t: torch.addcmul(x, x, y, value=t),
    "hypotenuse": lambda x, y, t: (x.square() + y.square() + 1).sqrt(),
    "in place": lambda x, y, t: x.clone().add_(y.expand_as(x)),
    "copy in place": lambda x, y, t: x.clone().copy_(y.expand_as(x)),
}
PRODUCTS = {
    "matmul": (lambda x, y: x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0], torch.matmul),
    "own matmul": (lambda x, y: x.ndim == 2, lambda x, y: x @ x.T),
    "matrix by vector": (
        lambda x, y: x.ndim == 2 and y.ndim == 1 and x.shape[1] == y.shape[0],
        torch.mv,
    ),
    "dot": (lambda x, y: x.ndim == y.ndim == 1 and x.shape == y.shape, torch.dot),
    "outer": (lambda x, y: x.ndim == y.ndim == 1, torch.outer),
}


class Line(NamedTuple):
    """One operation of a program: its operands are counted from the last value backwards."""

    name: str
    x: int
    y: int
    number: float

    def apply(self, values):
        """Append the result to `values`, unless the operation isn't one of these operands."""
        x, y = (values[-1 - place % len(values)] for place in (self.x, self.y))
        result = _result(self.name, x, y, self.number)
        if result is not None and result.numel() <= MOST_ELEMENTS:
            values.append(result)


def _result(name, x, y, number):
    for table in (UNARY, REDUCTIONS, VIEWS, IN_PLACE, IMAGES):
        if name in table:
            applies, operation = table[name]
            return operation(x, y, number) if applies(x) else None
    if name in PRODUCTS:
        applies, operation = PRODUCTS[name]
        return operation(x, y) if applies(x, y) else None
    return BINARY[name](x, y, number) if _fits(x, y) else None


def _fits(x, y):
    """Return True if `y` can be expanded to the shape of `x`."""
    try:
        return torch.broadcast_shapes(x.shape, y.shape) == x.shape
    except RuntimeError:
        return False


class Program(NamedTuple):
    """A function of some tensors, and a transform that it goes through."""

    lines: tuple[Line, ...]
    shapes: tuple[tuple[int, ...], ...]
    transform: str
    donated: tuple[int, ...]
    seed: int

    def arguments(self):
        """Return new arguments: some are slices of larger tensors, some hold infinities."""
        generator = torch.Generator().manual_seed(self.seed)
        return [self._argument(i, shape, generator) for i, shape in enumerate(self.shapes)]

    def _argument(self, i, shape, generator):
        batch = (3,) if "vmap" in self.transform else ()
        whole = torch.randn((2, *batch, *shape), generator=generator, dtype=FLOAT64)
        if (self.seed + i) % 4 == 0 and whole.numel():
            whole.view(-1)[-1] = torch.inf
        is_donated = i in self.donated
        return whole[1].clone() if is_donated or (self.seed + i) % 3 else whole[1]

    def values(self, *arguments: Tensor):
        """Return the last values of the program without its transform."""
        values = list(arguments)
        for line in self.lines:
            line.apply(values)
        return values[-3:]

    def loss(self, *arguments: Tensor):
        """Return a scalar of the last values."""
        return sum(value.tanh().sum() for value in self.values(*arguments))

    def __call__(self, *arguments: Tensor):
        """Return what the transformed program gives."""
        return _TRANSFORMED[self.transform](self, arguments)

    @property
    def tolerance(self):
        """Relative and absolute error up to which results are equal: rounding alone."""
        return 1e-4 if any(line.name == "float32" for line in self.lines) else 1e-9

    def __str__(self):
        lines = "\n".join(f"  {line}" for line in self.lines)
        return f"{self.transform} of {self.shapes}, donated {self.donated}, {self.seed}:\n{lines}"


def _directions(arguments):
    return tuple(torch.ones_like(argument) for argument in arguments)


def _gradients(program, arguments):
    return grad(program.loss, tuple(range(len(arguments))))(*arguments)


def _along(program, arguments):
    return jvp(program.values, arguments, _directions(arguments))


def _only_first(program, arguments):
    """Return derivatives along the first argument; the others have no tangent."""
    first, *rest = arguments
    return jvp(lambda x: program.values(x, *rest), (first,), (torch.ones_like(first),))


def _gradient_along(program, arguments):
    def derivative(*arguments):
        return jvp(program.loss, arguments, _directions(arguments))[1]

    return grad(derivative)(*arguments)


def _along_gradient(program, arguments):
    def gradients(*arguments):
        return _gradients(program, arguments)

    return jvp(gradients, arguments, _directions(arguments))


def _batched(function):
    return lambda program, arguments: vmap(lambda *each: function(program, each))(*arguments)


_TRANSFORMED = {
    "none": lambda program, arguments: program.values(*arguments),
    "grad": _gradients,
    "jvp": _along,
    "jvp of one": _only_first,
    "vmap": _batched(lambda program, arguments: tuple(program.values(*arguments))),
    "grad of jvp": _gradient_along,
    "jvp of grad": _along_gradient,
    "vmap of grad": _batched(_gradients),
    "vmap of jvp": _batched(_only_first),
}


def program(seed):
    """Return the random program of this number: 3 to 30 operations."""
    draw = random.Random(seed)
    tables = (UNARY, UNARY, REDUCTIONS, VIEWS, VIEWS, IN_PLACE, IMAGES, BINARY, BINARY, PRODUCTS)
    lines = tuple(
        Line(
            draw.choice(sorted(draw.choice(tables))),
            min(draw.randrange(4), draw.randrange(8)),
            draw.randrange(8),
            _step(draw.random()),
        )
        for _ in range(draw.randint(3, 30))
    )
    shapes = tuple(draw.choice(SHAPES) for _ in range(draw.randint(1, 3)))
    donated = tuple(i for i in range(len(shapes)) if draw.random() < 0.3)
    return Program(lines, shapes, draw.choice(sorted(_TRANSFORMED)), donated, seed)
