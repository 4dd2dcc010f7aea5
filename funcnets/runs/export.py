"""Trained networks as files of other formats: torch.export, ONNX and AOTInductor.

Each takes prepared images, float (N, C, H, W) of any batch size N, and gives logits (N, K).  The
names of the classes and the preparation of the images go along as metadata.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import funcnets
from funcnets import _extras, _files, _torch, precision, tree
from funcnets.runs.config import Config, SweepConfig
from funcnets.transforms import ensemble

METADATA = "funcnets.json"  # the name under which the metadata are kept
IMAGES, LOGITS = "images", "logits"  # names of input and output
EXAMPLE_IMAGES = 2  # a batch of one would be taken for a batch size that is always one
FILES = {"torch": "model.pt2", "onnx": "model.onnx", "aot": "model.aot.pt2"}


class Exported(NamedTuple):
    """A network that was read from a file.

    Attributes:
        logits: function of prepared images, float (N, C, H, W), to logits (N, K).
        metadata: what `metadata_of` returned for the run.
    """

    logits: Callable[[Tensor], Tensor]
    metadata: dict[str, Any]


class _Network(nn.Module):
    """Network of a run as a module without arguments but the images; its leaves are buffers."""

    def __init__(self, logits: Callable[[Any, Tensor], Tensor], values: Any) -> None:
        super().__init__()
        self._logits = logits
        leaves, self._structure = tree.flatten(values)
        self._names = [name.replace(".", "_") for name in tree.names(values)]
        for name, leaf in zip(self._names, leaves, strict=True):
            self.register_buffer(name, leaf)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        leaves = [getattr(self, name) for name in self._names]
        return self._logits(tree.unflatten(leaves, self._structure), images)


def as_module(net: funcnets.Layer, params: Any, state: Any, config: Config) -> nn.Module:
    """Return the network of a run in its precision as a module of prepared images.

    That of a sweep gives the logits of the ensemble of its members, without those that diverged.
    """
    net = precision.cast(net, precision.POLICIES[config.precision])
    values = {"params": params, "state": state}
    if not isinstance(config, SweepConfig):
        return _Network(lambda v, x: net.apply(v["params"], v["state"], x)[0], values)
    good = [m for m in range(len(config.members)) if _is_finite(values, m)] or [0]
    values = tree.map(lambda leaf: leaf[good], values)

    def logits(values: Any, x: Tensor) -> Tensor:
        # One after the other: vmap makes convolutions of the members for one batch size only.
        each = [tree.map(lambda leaf, m=m: leaf[m], values) for m in range(len(good))]
        outputs = [net.apply(member["params"], member["state"], x)[0] for member in each]
        return ensemble.combine_logits(torch.stack(outputs))

    return _Network(logits, values)


def _is_finite(values: Any, member: int) -> bool:
    return all(bool(leaf[member].isfinite().all()) for leaf in tree.leaves(values))


def metadata_of(config: Config, step: int) -> dict[str, Any]:
    """Return what a user of the file has to know: the classes, and how images are prepared."""
    return {
        "funcnets": funcnets.__version__,
        "network": config.network,
        "step": step,
        "precision": config.precision,
        "class_names": list(config.class_names),
        "channels": config.channels,
        "side": config.side,
        "mean": list(config.mean),
        "deviation": list(config.deviation),
        "preparation": "resize by bilinear interpolation to side x side, divide by 255, and where "
        "mean and deviation aren't empty subtract the mean and divide by the deviation",
    }


def trace(module: nn.Module, config: Config) -> torch.export.ExportedProgram:
    """Return the program of a module by `torch.export`, for any number of images."""
    device = next(module.buffers()).device
    shape = (EXAMPLE_IMAGES, config.channels, config.side, config.side)
    images = torch.zeros(shape, device=device)
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _without_warnings():
        return torch.export.export(module.eval(), (images,), dynamic_shapes=({0: batch},))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Context in which PyTorch's exporters don't warn about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Context of a new path, which replaces `path` at the end, if nothing was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _files.temporary_path(path).with_suffix(path.suffix)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_torch(
    program: torch.export.ExportedProgram, path: Path, metadata: dict[str, Any]
) -> None:
    """Write a program as `torch.export.save` does; the metadata are its extra file `METADATA`."""
    with _replacing(path) as temporary, _without_warnings():
        torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})


def read_torch(path: Path) -> Exported:
    """Read a file of `write_torch`."""
    extra = {METADATA: ""}
    with _without_warnings():
        program = torch.export.load(path, extra_files=extra)
    return Exported(program.module(), json.loads(extra[METADATA]))


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Write a program as ONNX with a dynamic batch; the metadata are JSON in `METADATA`.

    Raises MissingExtraError without onnx and onnxscript.
    """
    for needed in ("onnx", "onnxscript"):
        _extras.require(needed, "export", "an export to ONNX")
    with _without_warnings():
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[IMAGES],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert made is not None
        made.model.metadata_props[METADATA] = json.dumps(metadata)
        with _replacing(path) as temporary:
            made.save(temporary)


def read_onnx(path: Path) -> Exported:
    """Read a file of `write_onnx` by onnxruntime.  Raises MissingExtraError without it."""
    runtime = _extras.require("onnxruntime", "export", "the check of an ONNX file")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        (found,) = session.run([LOGITS], {IMAGES: images.cpu().numpy()})
        return torch.from_numpy(found)

    return Exported(logits, json.loads(session.get_modelmeta().custom_metadata_map[METADATA]))


def write_aot(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Compile a program by AOTInductor to a package; the metadata are JSON in `METADATA`."""
    with _replacing(path) as temporary, _without_warnings():
        options = {"aot_inductor.metadata": {METADATA: json.dumps(metadata)}}
        _torch.compile_package(program, str(temporary), options)


def read_aot(path: Path) -> Exported:
    """Read a package of `write_aot`."""
    with _without_warnings():
        package = _torch.load_package(str(path))
    return Exported(package, json.loads(package.get_metadata()[METADATA]))


WRITERS = {"torch": write_torch, "onnx": write_onnx, "aot": write_aot}
READERS = {"torch": read_torch, "onnx": read_onnx, "aot": read_aot}
