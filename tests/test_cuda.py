"""What is done for GPUs, as far as a CPU can tell: see test_gpu.py for the rest."""

import contextlib
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import funcnets
from funcnets import models, optim, precision, random, train, tree
from funcnets.compiler import api
from funcnets.compiler.backends import cuda
from funcnets.compiler.backends.select import compile_graph
from funcnets.compiler.lowerings import deterministic
from funcnets.compiler.passes.donate import donate
from funcnets.compiler.trace import record_function
from funcnets.parallel import Axis

pytestmark = pytest.mark.usefixtures("verified")

PLACES = (
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
)


def flags():
    return [place.fp32_precision for place in PLACES]


@pytest.mark.parametrize(("tf32", "expected"), [(True, "tf32"), (False, "ieee")])
def test_products_are_as_asked_for_whatever_is_set(tf32, expected):
    before = flags()
    seen = []

    def run(*leaves):
        seen.append(flags())
        if not leaves:
            raise ZeroDivisionError
        return leaves

    precise = cuda.with_products(run, tf32=tf32)
    x = torch.ones(2)
    assert precise(x) == (x,)
    with pytest.raises(ZeroDivisionError):
        precise()
    assert seen == [[expected] * 3] * 2
    assert flags() == before


def test_compilers_can_read_what_products_set():
    """PyTorch refuses to tell some flags while others contradict them."""
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten())
    x = torch.ones(1, 1, 4, 4)
    jitted = funcnets.jit(lambda x: x @ x + x, backend="graph")
    for tf32 in (True, False):
        torch._dynamo.reset()
        with cuda.products(tf32=tf32):
            compiled = torch.compile(module, backend="aot_eager")(x)
            result = jitted(x)
        torch.testing.assert_close(compiled, module(x))
        torch.testing.assert_close(result, x @ x + x)


class Capturer:
    """Stands in for CUDA graphs: captures without computing, and computes when replayed."""

    def __init__(self, error=None):
        self.captured, self.replayed, self.error = 0, 0, error

    def __call__(self, function):
        if self.error:
            raise self.error
        self.captured += 1
        kept = [leaf.clone() for leaf in self.leaves()]
        results = function()
        for leaf, value in zip(self.leaves(), kept, strict=True):
            leaf.copy_(value)
        for result in results:
            result.fill_(0)

        def replay():
            self.replayed += 1
            with torch.inference_mode():  # a GPU knows of no modes
                for result, value in zip(results, function(), strict=True):
                    result.copy_(value)

        return replay, results

    def leaves(self):
        return ()


def momentum_step():
    """A function of three leaves, of which it updates two in place, and its executable."""

    def function(x, velocity, batch):
        velocity = velocity * 0.5 + batch.mean()
        x = x - velocity
        return [x, velocity, (x * batch).sum()]

    leaves = [torch.ones(3), torch.zeros(3), torch.ones(3)]
    compilation = record_function(function, leaves, ())
    compilation.donated = (0, 1)
    assert donate(compilation)
    assert compilation.aliases == {0: 0, 1: 1}
    return function, compile_graph(compilation.module, "graph")


def begun(seed=0):
    return [random.normal(random.key(seed), (3,)), torch.zeros(3)]


def batch_of(step):
    return random.normal(random.key(100 + step), (3,))


def train_by(replayed, capturer, state, steps):
    """What `replayed` gives for a state that stays where it is, and new batches."""
    capturer.leaves = lambda: state
    return [replayed(*state, batch_of(step))[0] for step in steps]


def expected_of(function, state, steps):
    given = []
    for step in steps:
        *state, result = function(*state, batch_of(step))
        given.append(result)
    return given, state


def test_a_loop_is_captured_at_its_second_step_and_gives_the_same():
    function, run = momentum_step()
    capturer = Capturer()
    replayed = cuda.Replayed(run, (0, 1), capturer)
    state = begun()
    expected, after = expected_of(function, begun(), range(5))
    actual = train_by(replayed, capturer, state, range(5))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(state, after)
    assert (capturer.captured, capturer.replayed) == (1, 4)


def test_results_are_the_callers():
    _, run = momentum_step()
    capturer = Capturer()
    replayed = cuda.Replayed(run, (0, 1), capturer)
    given = train_by(replayed, capturer, begun(), range(6))
    assert len({float(value) for value in given}) == 6
    assert len({value.data_ptr() for value in given}) == 6


def test_each_state_of_several_that_take_turns_has_its_graph():
    function, run = momentum_step()
    capturer = Capturer()
    replayed = cuda.Replayed(run, (0, 1), capturer)
    states = [begun(seed) for seed in range(3)]
    for step in range(4):
        for state in states:
            train_by(replayed, capturer, state, [step])
    assert (capturer.captured, capturer.replayed) == (3, 9)
    for seed, state in enumerate(states):
        torch.testing.assert_close(state, expected_of(function, begun(seed), range(4))[1])


def test_graphs_are_bounded_and_the_oldest_makes_room(monkeypatch):
    monkeypatch.setattr(cuda, "MOST_GRAPHS", 2)
    function, run = momentum_step()
    capturer = Capturer()
    replayed = cuda.Replayed(run, (0, 1), capturer)
    states = [begun(seed) for seed in range(3)]
    for state in states:
        train_by(replayed, capturer, state, [0, 1])
    assert capturer.captured == 3
    train_by(replayed, capturer, states[2], [2])
    train_by(replayed, capturer, states[1], [2])
    assert (capturer.captured, capturer.replayed) == (3, 5)
    train_by(replayed, capturer, states[0], [2, 3])
    assert (capturer.captured, capturer.replayed) == (4, 6)
    for seed, (state, steps) in enumerate(zip(states, (4, 3, 3), strict=True)):
        torch.testing.assert_close(state, expected_of(function, begun(seed), range(steps))[1])


def test_what_stays_the_same_tensor_is_read_in_place_where_nothing_is_donated():
    """As parameters in an evaluation; they may change between two calls."""
    capturer = Capturer()
    replayed = cuda.Replayed(lambda weight, x: [weight * x], (), capturer)
    weight = torch.ones(3)
    for step in range(5):
        weight += step
        (result,) = replayed(weight, batch_of(step))
        torch.testing.assert_close(result, weight * batch_of(step))
    assert (capturer.captured, capturer.replayed) == (1, 3)


def test_arguments_that_are_always_new_are_never_captured():
    capturer = Capturer()
    replayed = cuda.Replayed(lambda x: [x + 1], (), capturer)
    for step in range(4):
        torch.testing.assert_close(replayed(batch_of(step))[0], batch_of(step) + 1)
    assert capturer.captured == 0


@pytest.mark.parametrize("size", [1, 2])
def test_collectives_are_not_captured_as_pytorch_would_not_watch_them(size, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda, "with_products", lambda run, **how: lambda *leaves: leaves)
    made = []
    monkeypatch.setattr(cuda, "Replayed", lambda run, *_: made.append(run) or run)
    axis = Axis(size)
    for _ in range(2):  # the second one is read from the disk cache
        jitted = funcnets.jit(lambda x: axis.psum(x) + 1, backend="graph", saved_as="a sum")
        jitted(torch.ones(2))
    assert len(made) == (2 if size == 1 else 0)


def test_what_cannot_be_captured_goes_on_with_a_warning():
    function, run = momentum_step()
    capturer = Capturer(RuntimeError("operation not permitted when stream is capturing"))
    replayed = cuda.Replayed(run, (0, 1), capturer)
    state = begun()
    train_by(replayed, capturer, state, [0])
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        train_by(replayed, capturer, state, [1])
    train_by(replayed, capturer, state, [2])
    torch.testing.assert_close(state, expected_of(function, begun(), range(3))[1])


def test_copies_of_arguments_have_no_history():
    """It would grow from call to call."""
    seen = []

    def run(weight, x):
        seen.append(x.grad_fn)
        return [weight.detach() * x.detach()]

    replayed = cuda.Replayed(run, (0,), Capturer())
    weight, x = torch.ones(3), torch.ones(3, requires_grad=True)
    for _ in range(4):
        replayed(weight, x * 2)
    assert seen[1:] == [None] * 4


def test_a_graph_of_inference_mode_is_replayed_outside_it():
    capturer = Capturer()
    replayed = cuda.Replayed(lambda weight, x: [weight * x], (0,), capturer)
    weight = torch.ones(3)
    with torch.inference_mode():
        for step in range(2):
            replayed(weight, batch_of(step))
    torch.testing.assert_close(replayed(weight, batch_of(2)), [batch_of(2)])
    assert capturer.replayed == 2


def test_threads_take_turns_at_a_graph():
    """It has one memory for its arguments."""

    def run(weight, x):
        time.sleep(0.02)
        return [weight * x]

    replayed, weight = cuda.Replayed(run, (0,), Capturer()), torch.ones(())
    for _ in range(2):
        replayed(weight, torch.zeros(()))
    numbers = [torch.tensor(float(i)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        given = [*pool.map(lambda x: replayed(weight, x)[0], numbers)]
    assert given == numbers


class Device:
    """Stands in for `torch.cuda`: devices with streams, and captures that may fail."""

    def __init__(self, monkeypatch, error=None):
        self.current, self.error = {0: "usual", 1: "usual"}, error
        self.at, self.captured = 0, []
        for name in ("device", "graph", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: (self.at, self.current[self.at]))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: (self.at, "side"))

    def set_stream(self, stream):
        self.at, self.current[stream[0]] = stream

    @contextlib.contextmanager
    def device(self, device):
        before, self.at = self.at, device.index
        try:
            yield
        finally:
            self.at = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        before = (self.at, self.current[self.at])
        self.set_stream(stream)
        self.captured.append((pool, stream))
        yield
        if self.error:
            raise self.error
        self.set_stream(before)


def test_each_device_captures_on_a_stream_of_its_own(monkeypatch):
    device = Device(monkeypatch)
    for index in (0, 1):
        capturer = cuda.Capturer(torch.device("cuda", index))
        assert [capturer(lambda: ["result"]) for _ in range(2)] == [(None, ["result"])] * 2
    assert device.captured == [("pool", (index, "side")) for index in (0, 0, 1, 1)]


def test_a_capture_that_fails_restores_the_stream(monkeypatch):
    device = Device(monkeypatch, RuntimeError("the capture was invalidated"))
    with pytest.raises(RuntimeError, match="invalidated"):
        cuda.Capturer(torch.device("cuda", 1))(list)
    assert (device.at, device.current) == (0, {0: "usual", 1: "usual"})


@pytest.mark.parametrize("is_unsafe", [False, True])
def test_operations_that_say_that_they_cannot_be_captured_are_not(is_unsafe):
    with torch.library._scoped_library("funcnets_tests", "DEF") as library:
        tags = (torch.Tag.cudagraph_unsafe,) if is_unsafe else ()
        library.define("twice(Tensor x) -> Tensor", tags=tags)
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        graph = funcnets.jit(lambda x: torch.ops.funcnets_tests.twice(x + 1)).trace(torch.ones(2))
        assert cuda.can_replay(graph.graph.code) is not is_unsafe


def test_a_jitted_step_on_a_gpu_is_precise_and_replayed(monkeypatch):
    """With every tensor taken for one of a GPU."""
    capturer, seen = Capturer(), []
    wrapped = cuda.with_products

    def with_products(run, *, tf32, deterministic):
        seen.append(tf32)
        return wrapped(run, tf32=tf32, deterministic=deterministic)

    monkeypatch.setattr(cuda, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda, "with_products", with_products)
    monkeypatch.setattr(cuda, "Capturer", lambda device: capturer)
    net, _ = models.get("lenet_bn")
    optimizer = optim.sgd(0.01, momentum=0.9)
    x = random.normal(random.key(1), (4, 1, 28, 28), torch.float64)
    expected = actual = train.create(net, optimizer, random.key(0), x)
    actual = tree.map(torch.clone, actual)
    capturer.leaves = lambda: tree.leaves(actual)
    step = train.make_train_step(net, optimizer)
    jitted = funcnets.jit(step, donate_argnums=0, backend="graph", tf32=True)
    for seed in range(4):
        batch = (random.normal(random.key(seed), x.shape, torch.float64), torch.arange(4) % 10)
        expected, loss = step(expected, batch)
        actual, measured = jitted(actual, batch)
        torch.testing.assert_close(measured, loss)
    pairs = zip(tree.leaves(actual), tree.leaves(expected), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
    assert (seen, capturer.captured, capturer.replayed) == ([True], 1, 3)


def test_a_run_in_tf32_can_be_evaluated_and_resumed_on_a_cpu(run, monkeypatch):
    """Where it is float32."""
    options = ("--limit-train", 64, "--batch-size", 32, "--backend", "graph", "--data", "bundled")
    with monkeypatch.context() as patch:
        patch.setattr(
            "funcnets.cli.configuration.available", lambda device: tuple(precision.POLICIES)
        )
        how = ("--precision", "tf32", "--schedule", "constant", "--epochs", 1)
        assert run("train", "--run", "r", "--device", "cpu", *how, *options)[0] == 0
    assert run("eval", "r")[0] == 0
    code, _, err = run("train", "--run", "r", "--resume", "--epochs", 2)
    assert code == 0, err


def test_tf32_is_a_precision_of_gpus(run):
    assert precision.available("cpu") == ("float32", "bfloat16")
    assert precision.available("cuda:1") == ("float32", "tf32", "bfloat16")
    code, _, err = run("train", "--precision", "tf32", "--device", "cpu")
    assert code == 2
    assert "--precision is tf32, which is for GPUs" in err
    assert "expected one of float32, bfloat16, auto" in err


@pytest.mark.parametrize("given", [False, True])
def test_deterministic_algorithms_are_asked_for_while_a_function_runs(given, monkeypatch):
    """And none that is chosen by timing, whatever is set for the process."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    seen = []
    run = cuda.with_products(
        lambda: seen.append((cudnn.deterministic, cudnn.benchmark)), tf32=False, deterministic=given
    )
    run()
    assert seen == [(given, not given)]
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


@pytest.mark.parametrize("given", [False, True])
def test_inductor_is_told_to_choose_no_order_of_sums_by_timing(given, monkeypatch):
    seen = []

    def compile_alone(graph, leaves, *, dynamic_shapes, options):
        seen.append(options)
        return graph.forward

    monkeypatch.setattr("torch._inductor.standalone_compile", compile_alone)
    jitted = funcnets.jit(lambda x: x + 1, backend="inductor", deterministic=given)
    assert torch.equal(jitted(torch.ones(2)), torch.full((2,), 2.0))
    assert seen == [{"config_patches": {"deterministic": True}} if given else None]
    assert hasattr(torch._inductor.config, "deterministic")


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 1, 6, 5)])
def test_deterministic_max_pools_are_max_pools(monkeypatch, shape):
    """On a CPU in a GPU's place, in channels_last."""
    lowering = deterministic.MAX_POOL_BACKWARD
    everywhere = dataclasses.replace(lowering, applies=lambda *how: True)
    monkeypatch.setattr(api, "DETERMINISTIC", (everywhere,))
    x = random.normal(random.key(0), shape, torch.float64).to(memory_format=torch.channels_last)

    def loss(x):
        return torch.nn.functional.max_pool2d(x, 3, 2, padding=1).square().sum()

    jitted = funcnets.jit(
        torch.func.grad(loss), backend="graph", deterministic=True, lowerings=None
    )
    torch.testing.assert_close(jitted(x), torch.func.grad(loss)(x))
    assert lowering.name in jitted.trace(x).fired
