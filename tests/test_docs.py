"""The pages README.md and examples/*.md: their code runs, and what they name exists."""

import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import funcnets
from funcnets.cli import commands

ROOT = Path(__file__).parent.parent
README, *OTHERS = PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```\w*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def run_blocks(page: Path, *smaller: tuple[str, str]) -> dict[str, Any]:
    """Run the Python blocks of a page in order, made smaller; return the names they define."""
    names: dict[str, Any] = {}
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        for text, replacement in smaller:
            block = block.replace(text, replacement)
        exec(compile(block, page.name, "exec"), names)
    return names


def inline(page: Path) -> list[str]:
    """Return the page's inline code, each on one line."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def written_commands(page: Path) -> list[list[str]]:
    """Return the commands `funcnets …` and `python examples/…` of a page, split into words."""
    fences = FENCE.findall(page.read_text(encoding="utf-8"))
    lines = [line for fence in fences for line in fence.splitlines()]
    parts = [part.strip() for line in lines + inline(page) for part in line.split("&&")]
    return [shlex.split(part) for part in parts if part.startswith(("funcnets ", "python exa"))]


def test_the_code_in_the_readme_runs(monkeypatch: Any) -> None:
    for module, name in ((funcnets, "jit"), (funcnets.transforms.ensemble, "jit_step")):
        monkeypatch.setattr(module, name, partial(getattr(module, name), backend="graph"))
    built, small = (
        '"resnet18")\n',
        '"resnet18")\nnet = funcnets.models.resnet((1, 1), channels=(4, 8))\n',
    )
    smaller = (built, small), ("256, 1, 28, 28", "8, 1, 28, 28"), ("(256,)", "(8,)")
    names = run_blocks(README, *smaller)
    assert built in README.read_text(encoding="utf-8")
    assert names["measured"]["loss"].shape == (4,)
    assert names["measured"]["loss"].isfinite().all()


@pytest.mark.docs
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, own_directory: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "examples")])
    assert run_blocks(page).keys() > {"__builtins__"} or "```python" not in page.read_text()


@each_page
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_anchors_that_a_page_links_to_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    goals = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [anchor for goal, anchor in goals if anchor not in anchors(goal)] == []


@each_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    paths = [
        code for code in inline(page) if re.fullmatch(r"(funcnets|tests|examples)/[\w./]+", code)
    ]
    here = [path for path in paths if not re.search(r"[A-Z]{2}", path)]  # NAME stands for any
    assert [code for code in here if not (ROOT / code).exists()] == []


@each_page
def test_commands_that_a_page_names_exist(page: Path) -> None:
    known = get_command(commands.app).commands  # type: ignore[attr-defined]
    for program, *words in written_commands(page):
        if program == "funcnets":
            options = {name for option in known[words[0]].params for name in option.opts}
        else:
            script, arguments = ROOT / words[0], ROOT / "examples" / "arguments.py"
            options = set(re.findall(r'"(--[\w-]+)"', script.read_text() + arguments.read_text()))
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= options, words


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_all_examples_and_guides_are_listed() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in scripts if f"`{name}`" not in text} == {"arguments.py", "drawing.py"}
    guides = sorted(path.name for path in (ROOT / "examples" / "guide").glob("*.md"))
    assert [name for name in guides if f"](guide/{name})" not in text] == []
