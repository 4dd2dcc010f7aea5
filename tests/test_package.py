"""What `import funcnets` costs, and what it gives."""

import subprocess
import sys
from types import ModuleType

import pytest

import funcnets

HEAVY = ["torchvision", "typer", "rich", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"]


def printed(script, *arguments):
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("imported", "heavy"),
    [
        ("from funcnets import *", HEAVY),
        ("import funcnets.cli.commands", ["torch", "rich.progress"]),
        ("import funcnets.testing", [*HEAVY, "hypothesis", "pytest"]),
    ],
)
def test_the_import_brings_nothing_heavy(imported, heavy):
    script = f"import sys\n{imported}\nprint([name for name in {heavy} if name in sys.modules])"
    assert printed(script) == "[]"


def test_every_module_can_be_the_first_to_be_imported():
    names = [name for name in funcnets.__all__ if isinstance(getattr(funcnets, name), ModuleType)]
    assert "interop" in names
    assert (
        printed(EACH_ALONE, *names, "cli.training", "bench", "cli.sweep", "compiler.kernels") == ""
    )


EACH_ALONE = """
import os, sys, torch
for name in sys.argv[1:]:
    if not os.fork():
        __import__(f"funcnets.{name}")
        os._exit(0)
    if os.wait()[1]:
        print(name)
"""


def test_jit_is_the_function_whatever_was_imported_before():
    script = (
        "import funcnets.compiler.api; from funcnets import jit; print(jit is funcnets.jit, jit)"
    )
    assert printed(script).startswith("True <function jit at")


def test_names_that_are_not_imported_yet_are_listed_and_others_refused():
    assert printed("import funcnets; print(dir(funcnets) == sorted(funcnets.__all__))") == "True"
    with pytest.raises(AttributeError, match="'funcnets' has no attribute 'nothing'"):
        _ = funcnets.nothing


def test_every_public_name_exists_and_is_documented():
    for name in funcnets.__all__:
        assert getattr(funcnets, name).__doc__, name
