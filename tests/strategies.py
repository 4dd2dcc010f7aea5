"""What hypothesis draws: numbers, the eight networks in all sizes, and batch norm's options."""

from typing import Any

from hypothesis import strategies as st
from registry import Network

seeds = st.integers(0, 2**31)
widths = st.integers(1, 6)


def lists(elements: st.SearchStrategy[Any], least: int, most: int | None = None) -> Any:
    return st.lists(elements, min_size=least, max_size=least if most is None else most)


def shapes(least: int, most: int, batch: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    """(N, C, side, side), of sides from `least` to `most` and at least `batch` images."""
    return st.tuples(st.integers(batch, 5), st.integers(1, 2), st.integers(least, most)).map(
        lambda drawn: (*drawn, drawn[2])
    )


@st.composite
def _vgg(draw: st.DrawFn) -> Network:
    arch = draw(lists(st.tuples(st.integers(1, 2), widths), 1, 4))
    shape = draw(shapes(2 ** len(arch), 2 ** len(arch) + 5))
    return Network("vgg11", {"arch": arch, "hidden": draw(widths)}, shape)


@st.composite
def _lenet(draw: st.DrawFn, name: str) -> Network:
    narrow = {"channels": draw(lists(widths, 2)), "hidden": draw(lists(st.integers(2, 9), 2))}
    options = draw(st.sampled_from([{}, narrow]))
    # Two rows that are normalised become ±1, whatever they were: no gradient is left to compare.
    return Network(name, options, draw(shapes(16, 32, batch=3)))


@st.composite
def _resnet(draw: st.DrawFn) -> Network:
    depths = draw(st.just([2, 2, 2, 2]) | lists(st.integers(1, 2), 1, 4))
    options = {"depths": depths, "channels": draw(lists(widths, len(depths)))}
    return Network("resnet18", options, draw(shapes(4, 32, batch=3)))


@st.composite
def _densenet(draw: st.DrawFn) -> Network:
    depths = draw(lists(st.integers(1, 4), 1, 4))
    options = {"layers": depths, "growth": draw(widths), "stem_channels": draw(st.integers(2, 6))}
    least = 2 ** (len(depths) + 1)
    return Network("densenet", options, draw(shapes(least, least + 9, batch=3)))


NETWORKS: dict[str, st.SearchStrategy[Network]] = {
    "alexnet": st.builds(
        Network,
        st.just("alexnet"),
        st.fixed_dictionaries({"channels": lists(widths, 5), "hidden": st.integers(1, 9)}),
        shapes(63, 75),
    ),
    "vgg11": _vgg(),
    "nin": st.builds(
        Network,
        st.just("nin"),
        st.fixed_dictionaries({"channels": lists(widths, 3)}),
        shapes(67, 75),
    ),
    "googlenet": st.builds(
        Network,
        st.just("googlenet"),
        st.fixed_dictionaries(
            {"divisor": st.just(8), "variant": st.sampled_from(["reference", "paper"])}
        ),
        shapes(8, 32),
    ),
    "lenet_bn": _lenet("lenet_bn"),
    "lenet_bn_scratch": _lenet("lenet_bn_scratch"),
    "resnet18": _resnet(),
    "densenet": _densenet(),
}
