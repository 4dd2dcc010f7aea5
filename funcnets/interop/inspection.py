"""Inspection of a module's first calls for what would make its lifted form silently wrong."""

import random as python_random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from funcnets import tree
from funcnets._torch import current_dispatch_mode, version_of
from funcnets.core import LayerError
from funcnets.interop.module_copy import Structure

_CHECKPOINT = str(Path(torch.__file__).parent / "utils" / "checkpoint.py")


def global_generators() -> list[bytes]:
    """Return the states of the global generators: PyTorch's on the CPU, NumPy's and Python's."""
    numpy_state: Any = np.random.get_state()
    return [
        bytes(torch.get_rng_state().tolist()),
        np.asarray(numpy_state[1]).tobytes(),
        repr((numpy_state[2:], python_random.getstate())).encode(),
    ]


class Inspection(TorchFunctionMode):
    """Checks of one call.  While entered, it sees each function of PyTorch that is called.

    Attributes:
        values: the parameters to run with, by name: copies, which the caller doesn't see written
            to, or those given while `jit` traces, which refuses a write itself.
    """

    def __init__(
        self,
        structure: Structure,
        params: Mapping[str, Tensor],
        caller: CodeType,
        error: Callable[[str], LayerError],
    ) -> None:
        super().__init__()
        self._caller, self._error, self._params = caller, error, params
        self._is_paused = False
        self._is_traced = current_dispatch_mode() is not None
        self.values = dict(params)
        if not self._is_traced:
            self.values = {name: leaf.clone() for name, leaf in params.items()}
        self._given = {id(leaf) for leaf in self.values.values()}
        self._originals = {id(leaf) for leaf in structure.originals()}
        self._constants = [(name, leaf, version_of(leaf)) for name, leaf in structure.constants()]
        self._generators = [] if self._is_traced else global_generators()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self._is_paused:
            self._check_tensors((args, kwargs))
            self._check_callers()
        return function(*args, **(kwargs or {}))

    def _check_tensors(self, arguments: Any) -> None:
        for leaf in tree.leaves(arguments):
            if isinstance(leaf, Tensor) and id(leaf) not in self._given and self._is_foreign(leaf):
                raise self._error(
                    f"uses a parameter or buffer of shape {tuple(leaf.shape)} that isn't one of "
                    "the module's own: reached by a closure or another object, or made in the "
                    "call, it gets no gradient and no update; register it with a module"
                )

    def _is_foreign(self, leaf: Tensor) -> bool:
        return id(leaf) in self._originals or isinstance(leaf, nn.Parameter)

    def _check_callers(self) -> None:
        for frame, _ in traceback.walk_stack(None):
            if frame.f_code is self._caller:
                return
            if frame.f_code.co_filename == _CHECKPOINT:
                raise self._error(
                    "uses torch.utils.checkpoint, which recomputes without keys and state: leave "
                    "it out, and use funcnets.transforms.remat on this part"
                )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look at no function while this is entered."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def finish(self) -> bool:
        """Return True if all could be checked: values can't be read under `vmap` and `jit`.

        Raises LayerError for what the call wrote to, and for draws that no key decided.
        """
        for name, constant, version in self._constants:
            if version_of(constant) != version:
                raise self._error(f"writes to `{name}`, which is no buffer: register it as one")
        if self._is_traced:
            return False
        if global_generators() != self._generators:
            raise self._error(
                "draws from a global generator of PyTorch, NumPy or Python by other means than "
                "functions of PyTorch, which keys can't answer (if another thread drew meanwhile, "
                "call again)"
            )
        return all(self._is_unchanged(name, leaf) for name, leaf in self.values.items())

    def _is_unchanged(self, name: str, value: Tensor) -> bool:
        try:
            same = bool(((value == self._params[name]) | (value != value)).all())
        except RuntimeError:  # values have no single truth under vmap, nor on the meta device
            return False
        if not same:
            raise self._error(
                f"writes to its parameter `{name}`: parameters change in the training step only; "
                "compute the other value without writing it back"
            )
        return True
