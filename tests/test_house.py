"""The layout of the package: what may import what, how long a file is, which names it uses."""

import ast
import re
from pathlib import Path

import pytest

import funcnets

PACKAGE = Path(funcnets.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py" and path != PACKAGE / "__init__.py"
}
# Parts of the package, the lowest floor first: a file imports from lower floors, or from its part.
FLOORS = (
    {"_debug", "_extras", "_files", "_pickling", "_torch", "_validate"},
    {"tree", "function_transforms"},
    {"random", "timing", "compiler"},
    {"initializers", "losses", "core", "checkpoint", "data", "augment"},
    {"metrics", "layers", "optim", "precision", "summary"},
    {"models", "train", "interop"},
    {"transforms", "parallel"},
    {"testing", "runs"},
    {"bench", "plots"},
    {"cli"},
)
LONGEST_FILE = 450


def part_of(module):
    return module.split(".")[0]


def imports(path):
    """The modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "funcnets":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("funcnets."):
            yield node.module.removeprefix("funcnets.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("funcnets."):
                    yield alias.name.removeprefix("funcnets.")


def floor(module):
    (found,) = (i for i, floor in enumerate(FLOORS) if part_of(module) in floor)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    homes = {"Layer": "core", "sequential": "core", "LayerError": "core", "jit": "compiler"}
    for imported in imports(MODULES[module]):
        target = homes.get(imported, imported)
        if target.startswith("__") or part_of(target) == part_of(module):
            continue
        assert floor(target) < floor(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def names_of_torch(tree):
    """Names of torch that are imported, attributes of it, and strings that name a part of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("torch"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("torch.") and not name.startswith("torch.ops."):
                yield name
        elif isinstance(node, ast.Constant) and re.fullmatch(r"torch(\.\w+)+", str(node.value)):
            yield node.value


def is_private(name):
    """True for a name that a release may change: a segment begins with _, or is experimental."""
    return any(re.match(r"_(?!_)|experimental$", segment) for segment in name.split("."))


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_torch_are_in_one_file(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if module != "_torch":
        assert [name for name in names_of_torch(tree) if is_private(name)] == []


@pytest.mark.parametrize(
    "script",
    [
        "import torch._a",
        "from torch.b import _c",
        "from torch._d import e",
        "x = torch.f._g.h",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "import torch.distributed._functional_collectives",
        "importlib.import_module('torch._inductor')",
    ],
)
def test_private_names_are_seen(script):
    assert any(map(is_private, names_of_torch(ast.parse(script))))


def test_public_names_are_no_private_ones():
    script = "torch.__version__; torch.ops._a.b; print('torch._a is private')"
    assert not any(map(is_private, names_of_torch(ast.parse(script))))
