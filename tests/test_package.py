"""What `import funcnets` costs, and what it gives."""

import subprocess
import sys
from types import ModuleType

import pytest

import funcnets

HEAVY = ["torchvision", "typer", "rich", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"]


# Prints what each script prints, and "failed" where it raises, in a fork of one import of torch.
FORKS = """
import os, sys, torch, traceback
for script in sys.argv[1:]:
    if not os.fork():
        try:
            exec(script, {})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print("failed" if os.wait()[1] else "", end="\\0", flush=True)
"""


def printed(script, *arguments):
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def heavy_of(imported, heavy):
    return f"import sys\n{imported}\nprint([name for name in {heavy} if name in sys.modules])"


def test_the_command_line_starts_without_torch():
    assert printed(heavy_of("import funcnets.cli.commands", ["torch", "rich.progress"])) == "[]"


def test_imports_bring_nothing_heavy_and_work_in_any_order():
    names = [name for name in funcnets.__all__ if isinstance(getattr(funcnets, name), ModuleType)]
    assert "interop" in names
    alone = [*names, "cli.training", "bench", "cli.sweep", "compiler.kernels"]
    expected = {f"import funcnets.{name}": "" for name in alone} | {
        heavy_of("from funcnets import *", HEAVY): "[]",
        heavy_of("import funcnets.testing", [*HEAVY, "hypothesis", "pytest"]): "[]",
        heavy_of("from funcnets import data; data.load(str(data.BUNDLED))", HEAVY): "[]",
        "import funcnets.compiler.api; from funcnets import jit; print(jit.__name__)": "jit",
        "import funcnets; print(dir(funcnets) == sorted(funcnets.__all__))": "True",
    }
    outputs = printed(FORKS, *expected).split("\0")
    found = {script: output.strip() for script, output in zip(expected, outputs, strict=False)}
    assert found == expected


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(AttributeError, match="'funcnets' has no attribute 'nothing'"):
        _ = funcnets.nothing


def test_every_public_name_exists_and_is_documented():
    for name in funcnets.__all__:
        assert getattr(funcnets, name).__doc__, name
