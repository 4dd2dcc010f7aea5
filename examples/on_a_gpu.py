"""Prove, time and train every network on a GPU, in one command with a time limit.

    python examples/on_a_gpu.py --data DIR --seconds 600

Each row is printed as a line of JSON as soon as it is made, and a row that fails says why and ends
nothing else.  The phases, in order:

ceilings: a large matrix product at each precision, and a copy;
proofs: keys draw the same bits as on a CPU; steps in float64 are those of the module and of the
    CPU; steps wait for nothing; the same training twice gives the same bits;
steps: examples/s of a training step of every network, beside modules;
trainings: `funcnets train NET --recipe reference`, all networks.

`--device cpu --quick` runs all phases at small sizes, on a machine without a GPU.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import arguments
import torch

import funcnets
from funcnets import interop, models, optim, random, train, tree
from funcnets.bench import isolated, on_device, throughput
from funcnets.bench.cases import Case
from funcnets.bench.contenders import UNCOMPILED
from funcnets.compiler.backends.cuda import products
from funcnets.precision import available
from funcnets.testing import twins

Row = dict[str, Any]
# The most telling first, as time may run out.
NETWORKS = (
    *("resnet18", "googlenet", "lenet_bn", "densenet"),
    *("alexnet", "vgg11", "nin", "lenet_bn_scratch"),
)
SMALL_SIDES = dict.fromkeys(("alexnet", "nin"), 99) | dict.fromkeys(
    ("googlenet", "vgg11", "densenet"), 64
)
QUICK = ("lenet_bn", "resnet18")  # what `--quick` proves; it trains the first
PHASES = ("ceilings", "proofs", "steps", "trainings")
PROOF_STEPS = 5
TOLERANCE = 1e-8  # of float64, as batch norm amplifies rounding
RATE = 1e-3  # so low that rounding isn't amplified from step to step
COLUMNS = "eager-last,compiled-last,reduce-overhead,reduce-overhead-last,graph,graph-last,jit-last"


class Clock:
    """The seconds that are left of a time limit."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; negative after the end."""
        return self.ends - time.monotonic()


def show(row: Row) -> None:
    """Print a row at once."""
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(rounded), flush=True)


def attempt(phase: str, what: str, clock: Clock, make: Callable[[], Row]) -> None:
    """Print the row that `make` gives, or why there is none."""
    row: Row = {"phase": phase, "what": what}
    if clock.left <= 0:
        return show(row | {"left out": "the time is up"})
    started = time.monotonic()
    try:
        row |= make()
    except Exception as error:  # a row that fails ends nothing else
        lines = str(error).strip().splitlines() or [""]
        row |= {"failed": f"{type(error).__name__}: {lines[0][:300]}"}
    return show(row | {"seconds": time.monotonic() - started})


def seconds_of(function: Callable[[], object], device: str, count: int = 10) -> float:
    """Return the seconds of a call, of `count` after a first one."""
    function()
    if device.startswith("cuda"):
        return on_device.lap(function, count, device)
    started = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - started) / count


def ceilings(options: argparse.Namespace, clock: Clock) -> None:
    """Time a matrix product at each precision, and a copy."""
    side, device = (256, options.device) if options.quick else (8192, options.device)

    def product(precision: str) -> Row:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        matrix = random.normal(random.key(0, device), (side, side)).to(dtype)
        with products(tf32=precision == "tf32"):
            seconds = seconds_of(lambda: matrix @ matrix, device)
        return {"side": side, "tflops": 2 * side**3 / seconds / 1e12}

    def copy() -> Row:
        source = torch.zeros(2**20 if options.quick else 2**30, dtype=torch.uint8, device=device)
        seconds = seconds_of(source.clone, device)
        return {"gigabytes_per_second": 2 * source.numel() / seconds / 1e9}  # read and written

    for precision in available(device):
        attempt("ceilings", f"product {precision}", clock, functools.partial(product, precision))
    attempt("ceilings", "copy", clock, copy)


def small_case(name: str, device: str) -> Case:
    """Return a network at a size at which float64 on a CPU is quick."""
    return Case(name, 4, SMALL_SIDES.get(name, 28), device)


def keys_are_those_of_a_cpu(device: str) -> Row:
    """Compare draws on the device, eager, compiled and under `vmap`, with a CPU's."""
    expected = random.bits(random.key(7), (1000,))
    keys = random.split(random.key(7), 3)
    each = torch.stack([random.bits(key, (5,)) for key in keys])

    def draw(key: torch.Tensor) -> torch.Tensor:
        return random.bits(key, (1000,))

    found = {"eager": torch.equal(draw(random.key(7, device)).cpu(), expected)}
    for backend in ("graph", None):
        drawn = funcnets.jit(draw, backend=backend)(random.key(7, device))
        found[str(backend or "default")] = torch.equal(drawn.cpu(), expected)
    batched = torch.func.vmap(lambda key: random.bits(key, (5,)))(keys.to(device))
    found["vmap"] = torch.equal(batched.cpu(), each)
    return {"ok": all(found.values()), **found}


def to(device: str, values: Any) -> Any:
    """Return a tree on a device."""
    return tree.map(lambda leaf: leaf.to(device), values)


def trajectory(case: Case, backend: Any, start: Any, batch: Any, steps: int) -> tuple[Any, Any]:
    """Return the state and the losses after some compiled, donated steps."""
    net, optimizer = models.get(case.network)[0], optim.sgd(RATE, momentum=0.9)
    step = train.make_train_step(net, optimizer)
    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)
    state, losses = to(case.device, tree.map(torch.clone, start)), []
    for _ in range(steps):
        state, measured = jitted(state, batch)
        losses.append(measured["loss"].clone())
    return to("cpu", state), to("cpu", torch.stack(losses))


def float64_steps(case: Case, backend: str | None) -> Row:
    """Compare five donated steps in float64 with those on a CPU, by the largest difference."""
    net, optimizer = models.get(case.network)[0], optim.sgd(RATE, momentum=0.9)
    images = random.uniform(random.key(1), case.shape, torch.float64)
    labels = torch.arange(case.batch_size) % 10
    start = train.create(net, optimizer, random.key(0), images)
    here = Case(*case[:3], "cpu")
    expected = trajectory(here, "graph", start, (images, labels), PROOF_STEPS)
    actual = trajectory(case, backend, start, to(case.device, (images, labels)), PROOF_STEPS)
    worst = max(
        float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())
        for ours, theirs in zip(tree.leaves(actual), tree.leaves(expected), strict=True)
        if ours.numel()
    )
    return {"ok": worst < TOLERANCE, "worst": worst}


def module_steps(case: Case) -> Row:
    """Compare compiled steps in float64 with the eager module's, from the same values.

    A network with dropout is compared in evaluation, as a module draws other masks.
    """
    net, _ = models.get(case.network)
    images = random.uniform(random.key(1), case.shape, torch.float64)
    batch = to(case.device, (images, torch.arange(case.batch_size) % 10))
    start = train.create(net, optim.sgd(RATE, momentum=0.9), random.key(0), images)
    module = twins.get(case.network).to(torch.float64)
    module.load_state_dict(interop.to_state_dict(start.params, start.state), strict=False)
    module.to(case.device).train(not net.stochastic)
    if net.stochastic:
        params, state = to(case.device, (start.params, start.state))
        found = net.apply(params, state, batch[0])[0], module(batch[0])
    else:
        found = trajectory(case, "graph", start, batch, PROOF_STEPS)[1], losses_of(module, batch)
    ours, theirs = (values.detach().cpu() for values in found)
    worst = float((ours - theirs).abs().max())
    return {"ok": worst < TOLERANCE, "worst": worst}


def losses_of(module: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Return the losses of a module's steps of SGD with momentum."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)
    losses = []
    for _ in range(PROOF_STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(batch[0]), batch[1])
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def steps_wait_for_nothing(case: Case, backend: str | None) -> Row:
    """Run steps where each wait for the device is an error."""
    train_state, step, batch = ready(case, "float32", backend)
    for _ in range(3):
        train_state, _ = step(train_state, batch)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_state, _ = step(train_state, batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return {"ok": True}


def ready(case: Case, precision: str, backend: str | None) -> tuple[Any, Any, Any]:
    """Return a train state, its donated step and a batch."""
    policy = funcnets.precision.POLICIES[precision]
    net, optimizer, batch = models.get(case.network)[0], optim.sgd(0.01), case.batch()
    step = train.make_train_step(net, optimizer, policy=policy)
    jitted = funcnets.jit(step, donate_argnums=0, backend=backend, tf32=policy.tf32)  # type: ignore[arg-type]
    return train.create(net, optimizer, random.key(0, case.device), batch[0]), jitted, batch


def same_bits_twice(case: Case, precision: str, backend: str | None) -> Row:
    """Run the same ten steps twice, and compare the bits."""
    results = []
    for _ in range(2):
        train_state, step, batch = ready(case, precision, backend)
        for _ in range(10):
            train_state, _ = step(train_state, batch)
        results.append(to("cpu", train_state))
    pairs = zip(*map(tree.leaves, results), strict=True)
    return {"ok": all(torch.equal(a, b) for a, b in pairs)}


def proofs(options: argparse.Namespace, clock: Clock) -> None:
    """Print what is proven, network by network."""
    device, backends = options.device, ["graph"] if options.quick else ["graph", None]
    attempt("proofs", "keys", clock, lambda: keys_are_those_of_a_cpu(device))
    for name in QUICK if options.quick else options.nets:
        case = small_case(name, device)
        side = models.get(name, "reference")[1].side
        make = functools.partial(module_steps, case._replace(side=side))
        attempt("proofs", f"{name} module", clock, make)
        make = functools.partial(float64_steps, case, "graph")
        attempt("proofs", f"{name} float64 graph", clock, make)
    for backend in backends:
        name, how = QUICK[0] if options.quick else "resnet18", backend or "default"
        case = Case(name, 32, 28, device)
        if not options.quick:
            make = functools.partial(steps_wait_for_nothing, case, backend)
            attempt("proofs", f"{name} waits for nothing {how}", clock, make)
        for precision in available(device):
            make = functools.partial(same_bits_twice, case, precision, backend)
            attempt("proofs", f"{name} same bits {how} {precision}", clock, make)


def step_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the networks at the sizes of their recipes, or at small ones."""
    for name in options.nets:
        recipe, small = models.get(name, "reference")[1], small_case(name, options.device)
        full = Case(name, recipe.batch_size, recipe.side, options.device)
        yield small if options.quick else full


def steps(options: argparse.Namespace, clock: Clock) -> None:
    """Print the examples a second of each network's step, at each precision and column."""
    for case in step_cases(options):
        for precision in options.precisions:
            what = f"{case.network} {precision}"
            if clock.left <= 0:
                return show({"phase": "steps", "what": what, "left out": "the time is up"})
            try:
                for row in step_rows(case, precision, options):
                    show({"phase": "steps", **row})
                    if clock.left <= 0:
                        show({"phase": "steps", "what": what, "ended": "the time is up"})
                        break
            except Exception as error:  # as for every row
                show({"phase": "steps", "what": what, "failed": str(error)})
    return None


def step_rows(
    case: Case, precision: str, options: argparse.Namespace
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one network at one precision."""
    columns = options.columns.split(",")
    if case.device == "cpu":
        for row in throughput.time_steps(case, columns, [precision], rounds=options.rounds):
            yield row._asdict()
        return
    for timing in on_device.time_steps(
        case,
        columns,
        [precision],
        operations=throughput.operations_of(case),
        rounds=options.rounds,
        report=lambda text: show({"phase": "steps", "note": text[:300]}),
    ):
        yield timing._asdict()


def fill_caches(options: argparse.Namespace, clock: Clock) -> Row:
    """Compile the steps that are timed later, in processes side by side."""
    columns = [name for name in options.columns.split(",") if name not in UNCOMPILED]
    isolated.fill_caches(
        [
            (case, column, precision)
            for case in step_cases(options)
            for column in columns
            for precision in options.precisions
        ],
        clock.left,
    )
    return {"columns": columns}


def training(name: str, directory: Path, options: argparse.Namespace, clock: Clock) -> Row:
    """Train a network by the command line, and return its last epoch."""
    command = [sys.executable, "-m", "funcnets", "train", name, "--recipe", "reference"]
    command += ["--device", options.device, "--precision", options.precisions[0]]
    command += ["--data", options.data, "--run-dir", str(directory / name)]
    command += ["--backend", options.backend] if options.backend else []
    if options.quick:
        command += ["--limit-train", "64", "--batch-size", "32", "--epochs", "1"]
        command += ["--side", str(SMALL_SIDES.get(name, 28))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=max(1.0, clock.left)
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "killed").splitlines()[-1])
    lines = (directory / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tests = [row["test_accuracy"] for row in rows]
    return {"precision": options.precisions[0], "tests": tests, **rows[-1]}


def trainings(options: argparse.Namespace, clock: Clock) -> None:
    """Print the last epoch of each network's training."""
    with tempfile.TemporaryDirectory() as directory:
        for name in QUICK[:1] if options.quick else options.nets:
            make = functools.partial(training, name, Path(directory), options, clock)
            attempt("trainings", name, clock, make)


def environment(device: str) -> Row:
    """Return what was measured on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "phase": "environment",
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=arguments.above_zero, default=600.0, help="in all")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=[*PHASES])
    parser.add_argument("--nets", nargs="+", choices=arguments.NETWORKS, default=[*NETWORKS])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "tf32"])
    parser.add_argument("--columns", default=COLUMNS, help="of `funcnets bench`")
    parser.add_argument("--rounds", type=arguments.positive, default=5)
    parser.add_argument(
        "--no-caches", dest="caches", action="store_false", help="compile step by step, not before"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, no compilation")
    parser.add_data()
    parser.add_backend()
    options = parser.parse(argv)
    parser.load_data(options.data)  # ends here if the data of the trainings aren't there
    if options.quick:
        options.precisions, options.columns, options.rounds = ["float32"], "graph", 1
        options.backend = "graph"
    clock = Clock(options.seconds)
    show(environment(options.device))
    phases = {"ceilings": ceilings, "proofs": proofs, "steps": steps, "trainings": trainings}
    for phase in options.phases:
        if phase == "steps" and options.caches and not options.quick:
            attempt("caches", "filled", clock, functools.partial(fill_caches, options, clock))
        phases[phase](options, clock)


if __name__ == "__main__":
    main()
