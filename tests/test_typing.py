"""Type checkers see the installed package: a user's script passes, and his mistakes are found.

Both checkers read the package as `pip install -e .` leaves it, so `PYTHONPATH` is not theirs.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.typing

RIGHT = """
import torch

import funcnets
from funcnets import models, optim, random, train

x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
net, recipe = models.get("lenet_bn")
params, state = net.init(random.key(0), x)
logits, state = net.apply(params, state, x, train=True)
size: torch.Size = logits.shape

optimizer = optim.sgd(recipe.learning_rate)
train_state = train.create(net, optimizer, random.key(0), x)
step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0)
train_state, measured = step(train_state, (x, y))
loss: torch.Tensor = measured["loss"]
print(loss.item(), size, funcnets.__version__)


@funcnets.jit(static_argnames="power")
def raised(x: torch.Tensor, power: int) -> torch.Tensor:
    return x**power


class Model:
    @funcnets.jit
    def doubled(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


print(raised(x, power=2).sum(), Model().doubled(x).sum(), raised.trace(x, 2).fired)
"""

# Every line from the first mistake on is one.
MISTAKES = [
    "net.init(0, x)",
    "net.apply(x, train=True)",
    "label: str = net.apply(params, state, x)[0]",
    'optim.sgd("0.1")',
    "train.create(net, x, random.key(0), x)",
    "train.make_train_step(net)",
    "funcnets.nothing",
    'raised(x, power="2")',
    "raised(x)",
    "number: int = raised(x, 2)",
    "Model().doubled(x, x)",
    "step(train_state)",
]


def mypy(script, folder):
    """Return the lines of a script in which mypy finds an error."""
    options = ["--strict", "--python-executable", sys.executable, "--cache-dir", folder / "cache"]
    done = _run(["mypy", *options, "--output", "json", script], folder)
    return {json.loads(line)["line"] for line in done.stdout.splitlines()}


def pyright(script, folder):
    """Return the lines of a script in which pyright finds an error."""
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    options = ["--pythonpath", sys.executable, "--level", "error", "--outputjson"]
    done = _run(["basedpyright", *options, "--project", folder], folder)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return {found["range"]["start"]["line"] + 1 for found in report["generalDiagnostics"]}


def _run(command, folder):
    pytest.importorskip(command[0], reason=f"{command[0]} comes with the extra lint")
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=others)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return done


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_checker_passes_a_right_script_and_finds_each_mistake(checker, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RIGHT + "\n".join(MISTAKES) + "\n")
    first = len(RIGHT.splitlines()) + 1
    assert checker(script, tmp_path) == set(range(first, first + len(MISTAKES)))
