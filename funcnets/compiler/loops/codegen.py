"""C++ source of fused element-wise loops."""

from pathlib import Path

from torch import fx

from funcnets.compiler.kernels.build import MEMORY_TYPES, REGISTER_TYPES
from funcnets.compiler.loops.expressions import EXACT, expression
from funcnets.compiler.loops.grouping import Region

MAX_DEPTH = 4  # nested loops of the template
CHUNK_SIZE = 1 << 12  # numbers that a thread takes at a time
MAX_SERIAL_SIZE = 1 << 15  # numbers up to which one thread does all

HEADER = Path(__file__).with_name("loops.hpp").read_text(encoding="utf-8")
TEMPLATE = """
extern "C" void NAME(void** at, const long* size, const long* stride) {{
    const long rows = size[3] < {chunk} ? {chunk} / size[3] : 1;
    const bool is_large = size[0] * size[1] * size[2] * size[3] > {limit};
#pragma omp parallel for collapse(4) if (is_large)
    for (long a = 0; a < size[0]; ++a)
    for (long b = 0; b < size[1]; ++b)
    for (long row = 0; row < size[2]; row += rows)
    for (long first = 0; first < size[3]; first += {chunk})
        for (long c = row; c < min(row + rows, size[2]); ++c) {{
            const long last = min<long>(first + {chunk}, size[3]);
            {pointers}
#pragma omp simd
            for (long i = first; i < last; ++i) {{
                {body}
            }}
        }}
}}
"""
POINTER = (
    "{0}* p{1} = ({0}*) at[{1}] + a * stride[{2}] + b * stride[{2} + 1] + c * stride[{2} + 2];"
)


def source(region: Region) -> str:
    """Return C++ of a region as the function NAME.

    Sizes and outer strides are arguments, so that regions that differ in them alone share it.
    """
    operands, results, nest = region.operands, region.results, region.nest
    steps = nest[-1][1] if nest else (0,) * (len(operands) + len(results))
    types = [MEMORY_TYPES[node.meta["val"].dtype] for node in (*operands, *results)]
    pointers = [POINTER.format(each, i, MAX_DEPTH * i) for i, each in enumerate(types)]
    return TEMPLATE.format(
        chunk=CHUNK_SIZE,
        limit=MAX_SERIAL_SIZE,
        pointers=" ".join(pointers),
        body=" ".join(_body(region, [_element(i, step) for i, step in enumerate(steps)])),
    )


def _element(i: int, step: int) -> str:
    """Return C++ of the current element of the i-th pointer, whose inner stride is `step`."""
    index = {0: "0", 1: "i"}.get(step, f"i * stride[{MAX_DEPTH * i + MAX_DEPTH - 1}]")
    return f"p{i}[{index}]"


def _body(region: Region, elements: list[str]) -> list[str]:
    """Return the statements of the innermost loop."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def define(node: fx.Node, value: str) -> None:
        names[node] = f"v{len(lines)}"
        lines.append(f"const {REGISTER_TYPES[node.meta['val'].dtype]} {names[node]} = {value};")

    count = len(region.operands)
    for node, element in zip(region.operands, elements[:count], strict=True):
        define(node, f"to_real({element})")
    for node in region.nodes:
        value = expression(node, names)
        stored = MEMORY_TYPES[node.meta["val"].dtype]
        define(node, value if node.target in EXACT else f"rounded<{stored}>({value})")
    for node, element in zip(region.results, elements[count:], strict=True):
        stored = MEMORY_TYPES[node.meta["val"].dtype]
        lines.append(f"{element} = to_stored_exact<{stored}>({names[node]});")
    return lines
