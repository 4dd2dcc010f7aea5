"""What can't be a pure function is refused by name, when it is lifted or at its first call."""

import random as python_random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensors import same
from test_lift import KEY, images
from torch import nn
from torch.utils.checkpoint import checkpoint

from funcnets import interop, random, tree
from funcnets.core import LayerError

X = images((5, 4))


class Linear(nn.Linear):
    def __init__(self):
        super().__init__(4, 4, dtype=torch.float64)


def with_hook():
    module = Linear()
    module.register_full_backward_hook(lambda *_: None)
    return module


def with_forward():
    module = Linear()
    module.forward = lambda x: x
    return module


def lazy():
    return nn.LazyLinear(3)


def compiled_in_place():
    module = Linear()
    module.compile(backend="eager")
    return module


class OwnTrain(Linear):
    def train(self, mode=True):
        return super().train(False)


class InList(Linear):
    def __init__(self):
        super().__init__()
        self.blocks = [Linear()]


class InDict(Linear):
    def __init__(self):
        super().__init__()
        self.extra = {"scale": torch.ones(4, requires_grad=True)}


class SharedMemory(Linear):
    def __init__(self):
        super().__init__()
        self.register_buffer("shadow", self.weight.detach()[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(Linear()), "is scripted"),
        pytest.param(
            lambda: torch.compile(Linear(), backend="eager"), "is compiled", marks=pytest.mark.slow
        ),
        pytest.param(compiled_in_place, "is compiled", marks=pytest.mark.slow),
        (lambda: nn.DataParallel(Linear()), "lift its `module`"),
        (lazy, "LazyLinear is lazy"),
        (with_hook, "has backward hooks"),
        (with_forward, "has a forward of its own"),
        (OwnTrain, r"overrides train\(\)"),
        (InList, "keeps a Linear in `blocks` that isn't registered.*nn.ModuleList"),
        (InDict, "keeps a Tensor in `extra` that isn't registered.*nn.Parameter"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_modules_that_cannot_be_lifted(make, message):
    with pytest.raises(LayerError, match=rf"^0\.1: lift: .*{message}"):
        interop.lift(nn.Sequential(nn.Sequential(nn.ReLU(), make())))


def test_leaves_that_share_memory_are_refused():
    with pytest.raises(LayerError, match=r"0\.shadow and 0\.weight share memory"):
        interop.lift(nn.Sequential(SharedMemory()))


OUTSIDE = nn.Parameter(torch.ones(4, dtype=torch.float64))


class Module(nn.Module):
    """A module whose forward is the test's."""

    def __init__(self, forward):
        super().__init__()
        self.given = forward
        self.fc, self.calls, self.seen = Linear(), 0, [[]]
        self.constant = torch.zeros(4, dtype=torch.float64)
        self.register_buffer("total", torch.zeros(4, dtype=torch.float64))
        self.alias = nn.BatchNorm1d(4).double()
        self.alias.register_buffer("total", self.total)

    def forward(self, x):
        return self.given(self, x)


def after(effect):
    """A forward that ends with `effect(module, x)`."""

    def forward(self, x):
        y = self.fc(x)
        effect(self, x)
        return y

    return forward


def closed_over():
    weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
    return lambda self, x: x * weight


def over_the_module():
    module = Module(lambda self, x: x + module.total)
    return module


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (closed_over(), "^0: Module: its forward uses a parameter.*reached by a closure"),
        (lambda self, x: checkpoint(self.fc, x, use_reentrant=False), "transforms.remat"),
        (lambda self, x: checkpoint(self.fc, x, use_reentrant=True), "transforms.remat"),
        (after(lambda self, x: self.fc.weight.data.clamp_(-0.1, 0.1)), "writes to its parameter"),
        (after(lambda self, x: self.fc.weight.detach()[0].zero_()), r"parameter `0\.fc\.weight`"),
        (
            after(lambda self, x: setattr(self.fc, "weight", OUTSIDE)),
            "or made in the call",
        ),
        (after(lambda self, x: setattr(self, "calls", self.calls + 1)), r"assigns to 0\.calls"),
        (after(lambda self, x: self.seen[0].append(len(x))), r"assigns to 0\.seen"),
        (after(lambda self, x: self.register_buffer("new", x[0])), r"assigns to 0\._buffers"),
        (after(lambda self, x: self.eval()), r"assigns to 0\.training"),
        (after(lambda self, x: self.constant.add_(1)), r"writes to `0\.constant`"),
        (
            after(lambda self, x: setattr(self, "total", x[0])),
            r"only one of `0\.total` and `0\.alias\.total`",
        ),
        (after(lambda self, x: np.random.rand()), "global generator"),
        (after(lambda self, x: python_random.random()), "global generator"),
        (after(lambda self, x: torch.manual_seed(0)), "global generator"),
        (lambda self, x: x[torch.randperm(len(x))], "calls randperm, which draws"),
        (lambda self, x: F.gumbel_softmax(x), "calls gumbel_softmax, which draws"),
        (lambda self, x: F.alpha_dropout(x, 0.5, self.training), "calls alpha_dropout"),
        (lambda self, x: F.rrelu(x, training=self.training), "calls rrelu"),
        (
            lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
            "calls scaled_dot_product_attention, which draws",
        ),
        (
            lambda self, x: x + torch.rand(4, generator=torch.Generator()),
            "draws: rand is called with `generator` or `out`",
        ),
        (
            lambda self, x: F.batch_norm(x, None, None, training=self.training),
            r"calls F\.batch_norm in training by itself",
        ),
    ],
)
def test_calls_that_are_not_pure(forward, message):
    net = interop.lift(nn.Sequential(Module(forward)))
    params, state = interop.from_module(nn.Sequential(Module(forward)))
    kept = tree.map(torch.clone, (params, state))
    with torch.random.fork_rng(), pytest.raises(LayerError, match=message):
        net.apply(params, state, X, train=True, key=KEY)
    assert same((params, state), kept)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.alpha_dropout(x, 0.5, self.training),
        lambda self, x: F.feature_alpha_dropout(x[..., None], 0.5, self.training),
        lambda self, x: F.rrelu(x, training=self.training),
        lambda self, x: F.scaled_dot_product_attention(x, x, x),
    ],
)
def test_random_functions_run_where_they_do_not_draw(forward):
    net, values = interop.lift(Module(forward)), interop.from_module(Module(forward))
    assert net.apply(*values, X)[0].isfinite().all()


def test_a_closure_over_the_lifted_module_itself_is_refused():
    module = over_the_module()
    with pytest.raises(LayerError, match="reached by a closure"):
        interop.lift(module).apply(*interop.from_module(module), X)


@pytest.mark.parametrize("call", ["grad", "vmap", "jit"])
def test_calls_are_inspected_under_transforms_as_well(call):
    import funcnets

    module = Module(closed_over())
    net = interop.lift(module)
    params, state = interop.from_module(module)

    def total(params, x):
        return net.apply(params, state, x)[0].sum()

    functions = {
        "grad": torch.func.grad(total),
        "vmap": torch.func.vmap(lambda x: total(params, x[None])),
        "jit": funcnets.jit(total, backend="graph"),
    }
    arguments = (X,) if call == "vmap" else (params, X)
    with pytest.raises(LayerError, match="reached by a closure"):
        functions[call](*arguments)


class InPlaceDraw(nn.Module):
    def forward(self, x):
        return x * torch.empty(len(x), 1).bernoulli_(0.5)


def test_draws_in_place_are_refused_under_vmap_over_keys():
    net = interop.lift(InPlaceDraw())
    assert net.apply({}, {}, X, train=True, key=KEY)[0].shape == X.shape
    with pytest.raises(LayerError, match=r"draws in place, by different keys"):
        torch.func.vmap(lambda key: net.apply({}, {}, X, train=True, key=key))(random.split(KEY, 2))


class Seeds(Linear):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)


class Chooses(Linear):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(4))


class Constant(Linear):
    def __init__(self):
        super().__init__()
        self.frequencies = torch.randn(3)


ONE = Linear()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Seeds, "a constructor seeds a global generator"),
        (Chooses, r"draws by aten\.randperm.*no keyed stand-in"),
        (Constant, "`frequencies` has other values in each module"),
        (lambda: ONE, "returned one module twice"),
    ],
)
def test_constructors_that_a_key_cannot_decide(factory, message):
    with torch.random.fork_rng(), pytest.raises(LayerError, match=message):
        interop.lift(factory).init(KEY, X)


def test_a_factory_of_varying_modules_is_refused():
    sizes = iter([3, 4])
    net = interop.lift(lambda: nn.Linear(4, next(sizes)))
    with pytest.raises(LayerError, match=r"bias is torch\.float32 \(4,\).*and was .*\(3,\)"):
        net.init(KEY, X)
