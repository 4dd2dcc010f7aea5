"""The API reference: its source, the docstrings of public names, and the pages made of them."""

import importlib
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

# Public packages that `funcnets.__all__` doesn't lead to.
OTHERS = ["funcnets.bench", "funcnets.compiler", "funcnets.testing.strategies"]
CONVENTIONAL = {"self", "cls", "device", "dtype", "key", "seed"}  # these mean the same everywhere
REFERS_TO_ANOTHER = re.compile(r"[Aa]rguments|as `\w+` takes|as in `|given the same")


def public_modules() -> list[types.ModuleType]:
    found: list[types.ModuleType] = []
    names = ["funcnets", *OTHERS]
    while names:
        module = importlib.import_module(names.pop())
        if module not in found:
            found.append(module)
            names += [
                value.__name__
                for name in names_of(module)
                if isinstance(value := getattr(module, name), types.ModuleType)
            ]
    return sorted(found, key=lambda module: module.__name__)


def names_of(module: types.ModuleType) -> list[str]:
    """Return `__all__`, or the names that a module without it defines itself."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return list(names)
    return [
        name
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", None) == module.__name__
    ]


class Documented(NamedTuple):
    """A public class, function or method, and the text in which its arguments may be named."""

    name: str
    value: Any
    text: str


def is_alias(value: object) -> bool:
    """True for a type such as `Callable[[Tensor], Tensor]`, which has no docstring of its own."""
    return type(value).__module__.partition(".")[0] in ("typing", "types", "collections")


def documented(module: types.ModuleType) -> Iterator[Documented]:
    for name in names_of(module):
        value = getattr(module, name)
        if inspect.isclass(value):
            text = value.__doc__ or ""
            yield Documented(name, value, text)
            for part, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if part[0] != "_" and inspect.isfunction(function):
                    yield Documented(f"{name}.{part}", function, text + (function.__doc__ or ""))
        elif callable(value) and not is_alias(value):
            yield Documented(name, value, value.__doc__ or "")


MODULES = public_modules()
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


@each_module
def test_docstrings_begin_with_one_line(module: types.ModuleType) -> None:
    assert module.__doc__
    for name, value, _ in documented(module):
        first, _, _ = (inspect.getdoc(value) or "").partition("\n\n")
        assert first.endswith((".", ":")), name
        assert "\n" not in first, name
        assert not re.match(r"(What|Whether|How|Where|Those|That|Which)\b", first), name


@each_module
def test_arguments_are_typed_and_options_are_named(module: types.ModuleType) -> None:
    for name, value, text in documented(module):
        if not inspect.isfunction(value):
            continue
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for argument in signature.parameters.values():
            if argument.name in CONVENTIONAL:
                continue
            assert argument.annotation is not argument.empty, (name, argument.name)
            if argument.default is not argument.empty and not REFERS_TO_ANOTHER.search(text):
                assert re.search(rf"\b{argument.name}\b", text), (name, argument.name)


@each_module
def test_errors_that_a_function_raises_are_documented(module: types.ModuleType) -> None:
    for name, value, text in documented(module):
        if inspect.isfunction(value) and value.__code__.co_filename != "<string>":
            raises = re.search(r"^\s+raise ", inspect.getsource(value), flags=re.MULTILINE)
            assert not raises or re.search(r"[Rr]aise|Error|refuse", text), name


class Links(HTMLParser):
    """The addresses of a page, and the names of its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.page = page
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := named.get(name))}
        self.targets += [value for name in ("href", "src") if (value := named.get(name))]


def broken_links(pages: dict[Path, Links]) -> list[str]:
    """Return the links to pages that aren't there, and to anchors that their pages don't have."""
    found = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = target.partition("#")
            if "://" in path or path.startswith("data:"):
                continue
            goal = pages.get((page.parent / path).resolve() if path else page)
            if goal is None or (anchor and unquote(anchor) not in goal.anchors):
                found.append(f"{page.name}: {target}")
    return found


@pytest.mark.docs
def test_no_link_of_the_pages_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs the extra docs")
    contributing = Path(__file__).parent.parent / "examples" / "CONTRIBUTING.md"
    (command,) = re.findall(r"^pdoc (.*) -o build/api", contributing.read_text(), re.MULTILINE)
    made = [sys.executable, "-m", "pdoc", *command.split(), "-o", str(tmp_path)]
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page: Links(page) for page in tmp_path.resolve().rglob("*.html")}
    assert tmp_path.resolve() / "funcnets" / "transforms" / "ensemble.html" in pages
    assert tmp_path.resolve() / "funcnets" / "compiler.html" in pages
    assert broken_links(pages) == []
    assert [found for page in pages for found in badly_formatted(page.read_text())] == []


def badly_formatted(page: str) -> list[str]:
    """Return the docstrings with a lone backtick, or stars and underscores taken for emphasis."""
    texts = re.findall(r'<div class="docstring">(.*?)</div>\s*\n', page, flags=re.DOTALL)
    prose = [re.sub(r"<(code|pre)\b.*?</\1>", "", text, flags=re.DOTALL) for text in texts]
    return [text for text in prose if re.search(r"`|<em>|[^>]<strong>", text)]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path.resolve() / "a.html"
    page.write_text('<a id="here"></a><a href="#here"></a><a href="a.html#gone"></a><a href="b">')
    assert broken_links({page: Links(page)}) == ["a.html: a.html#gone", "a.html: b"]
