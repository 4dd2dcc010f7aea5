"""What `import funcnets` costs, and what it gives."""

import subprocess
import sys

import funcnets

HEAVY = ["torchvision", "typer", "rich", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"]


def test_the_import_brings_nothing_heavy():
    script = f"import sys, funcnets; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    for name in funcnets.__all__:
        assert getattr(funcnets, name).__doc__, name
