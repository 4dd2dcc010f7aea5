"""Errors from inside of a graph, in words."""

from typing import NoReturn

from funcnets.compiler.errors import CompileError

_OUT_OF_RANGE = ("out of bounds", "out of range", "Class values must be")
_OF_LABELS = ("Target", "Class values", "target")


def raise_explained(error: BaseException, *, is_donated: bool) -> NoReturn:
    """Raise ValueError for an index or a label out of range, else the error itself.

    Donated arguments are as they were after the former.  After other errors, such as of memory
    that is short, or Ctrl-C, they may be half written, and the error says so.
    """
    reason = str(error)
    is_index = isinstance(error, IndexError | RuntimeError)
    if is_index and any(phrase in reason for phrase in _OUT_OF_RANGE):
        unchanged = "; the donated arguments are unchanged" if is_donated else ""
        if reason.startswith(_OF_LABELS):
            raise ValueError(
                f"jit: a label is out of range ({reason.rstrip('.')}); expected 0 to one less than "
                "the number of classes: give the network as many classes as there are "
                f"labels{unchanged}"
            ) from error
        raise ValueError(f"jit: an index is out of range ({reason}){unchanged}") from error
    if is_donated and not isinstance(error, CompileError):
        error.add_note(
            "jit: the donated arguments may hold a part of the new values: go on from a checkpoint "
            "or a copy, not from them"
        )
    raise error
