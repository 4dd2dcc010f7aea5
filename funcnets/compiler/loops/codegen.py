"""C++ source of element-wise loops."""

from pathlib import Path

from torch import fx

from funcnets.compiler.kernels.build import COMPUTED, STORED
from funcnets.compiler.loops.expressions import EXACT, expression
from funcnets.compiler.loops.grouping import Run

DEPTH = 4  # loops in each other, in the template
CHUNK = 1 << 12  # numbers that one thread takes at a time
LONGEST = 1 << 15  # numbers that one thread takes alone

HEADER = Path(__file__).with_name("loops.hpp").read_text()
TEMPLATE = """
extern "C" void NAME(void** at, const long* size, const long* stride) {{
    const long rows = size[3] < {chunk} ? {chunk} / size[3] : 1;
    const bool many = size[0] * size[1] * size[2] * size[3] > {longest};
#pragma omp parallel for collapse(4) if (many)
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


def source(run: Run) -> str:
    """C++ of a run, as the function NAME: the same for runs that walk alike, whatever the sizes."""
    operands, results, nest = run.operands, run.results, run.nest
    steps = nest[-1][1] if nest else (0,) * (len(operands) + len(results))

    def element(i: int) -> str:
        return f"p{i}[{ {0: '0', 1: 'i'}.get(steps[i], f'i * stride[{DEPTH * i + DEPTH - 1}]') }]"

    types = [STORED[node.meta["val"].dtype] for node in (*operands, *results)]
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def note(node: fx.Node, value: str) -> None:
        names[node] = f"v{len(lines)}"
        lines.append(f"const {COMPUTED[node.meta['val'].dtype]} {names[node]} = {value};")

    for i, node in enumerate(operands):
        note(node, f"computed({element(i)})")
    for node in run.nodes:
        value, to = expression(node, names), STORED[node.meta["val"].dtype]
        note(node, value if node.target in EXACT else f"rounded<{to}>({value})")
    for i, node in enumerate(results, len(operands)):
        lines.append(f"{element(i)} = kept<{types[i]}>({names[node]});")
    pointers = [POINTER.format(each, i, DEPTH * i) for i, each in enumerate(types)]
    return TEMPLATE.format(
        chunk=CHUNK, longest=LONGEST, pointers=" ".join(pointers), body=" ".join(lines)
    )
