"""Texts of pictures: without formulas, of a limited length, in fonts that have their characters.

Names of classes are names of directories, in any script.  For a character that isn't in its font,
matplotlib draws a box and warns.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Boxes that name the block of a character, as if it had every one.
LAST_RESORT = "Last Resort"
ESCAPED_LENGTH = 24  # characters of a line with escapes, which fit above a small image


def plain(text: str) -> str:
    """Return a text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """Return a text of at most so many characters, plain: its begin and its end.

    >>> from funcnets.plots import texts
    >>> texts.shortened("a long name", 8)
    'a lo…ame'
    """
    return plain(_cut(text, length))


def _cut(text: str, length: int) -> str:
    end = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def fit_fonts(figure: "Figure") -> str:
    """Give the texts of a figure fonts that have their characters; return those that none has.

    The figure is changed: a text with a character that its font lacks gets installed fonts to fall
    back on, and a character that no installed font has becomes an escape, such as `\\u732b`.
    """
    from matplotlib.text import Text

    texts: list[Text] = figure.findobj(Text)
    lacking = {text: found for text in texts if (found := _lacking(text))}
    if not lacking:
        return ""
    families, missing = _fallback("".join(sorted(frozenset().union(*lacking.values()))))
    for text, characters in lacking.items():
        text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))
        if characters & missing:
            text.set_text(escaped(text.get_text(), missing))
    if missing:
        _replace_ticks(figure, lambda label: escaped(label, missing))
    return "".join(sorted(missing))


def escaped(text: str, characters: Iterable[str]) -> str:
    """Return a text with some characters as Python's escapes; lines that get too long are cut.

    >>> from funcnets.plots import texts
    >>> print(texts.escaped("a猫", "猫"))
    a\\u732b
    """
    escapes = {ord(c): c.encode("unicode_escape").decode() for c in characters}
    lines = text.split("\n")
    return "\n".join(
        _cut(line.translate(escapes), max(len(line), ESCAPED_LENGTH)) for line in lines
    )


def _lacking(text: "Text") -> frozenset[str]:
    """Return the characters of a text that its first font lacks; none of a formula."""
    characters = frozenset(text.get_text()) - {"\n"}
    if all(" " <= character <= "~" for character in characters):
        return frozenset()
    from matplotlib import font_manager

    path = font_manager.findfont(text.get_fontproperties())
    return characters - _characters(path)


@cache
def _characters(path: str) -> frozenset[str]:
    """Return the characters that a font file has; none if it can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _fallback(characters: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return families of fonts that have these characters, and the characters that none has.

    The fewest families are chosen one by one, so that a name is in one hand; of those with as many
    characters the first without serifs.
    """
    from matplotlib import font_manager

    covered: dict[str, frozenset[str]] = {}
    missing, chosen = frozenset(characters), []
    # The regular face of a family comes first, which is the one that is asked for most.
    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda entry: (entry.name, entry.style != "normal", entry.weight != 400, entry.fname),
    )
    for entry in entries:
        # A collection is opened at its first font.
        is_first = getattr(entry, "index", 0) == 0
        if is_first and entry.name not in covered and not entry.name.startswith(LAST_RESORT):
            covered[entry.name] = _characters(entry.fname) & missing

    def rank(name: str) -> tuple[int, bool, str]:
        return -len(covered[name] & missing), "sans" not in name.lower(), name

    while missing and covered and covered[best := min(covered, key=rank)] & missing:
        chosen.append(best)
        missing -= covered[best]
    return tuple(chosen), missing


def _replace_ticks(figure: "Figure", replace: Callable[[str], str]) -> None:
    """Replace the texts beside an axis, which it writes anew when it is drawn."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FixedLocator

    axis: Axis
    for axis in figure.findobj(Axis):
        if isinstance(axis.get_major_locator(), FixedLocator):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if (replaced := [replace(label) for label in labels]) != labels:
                axis.set_ticklabels(replaced)
