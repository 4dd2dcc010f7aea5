"""What `import funcnets` costs, and what it gives."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

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


def test_the_code_in_the_readme_runs(monkeypatch):
    for module, name in ((funcnets, "jit"), (funcnets.transforms.ensemble, "jit_step")):
        monkeypatch.setattr(module, name, partial(getattr(module, name), backend="graph"))
    text = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("256, 1, 28, 28", "8, 1, 28, 28").replace("(256,)", "(8,)"), names)
    assert names["measured"]["loss"].shape == (4,)
    assert names["measured"]["loss"].isfinite().all()
