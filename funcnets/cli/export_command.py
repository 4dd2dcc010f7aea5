"""Command that writes a run's network for other programs: `funcnets export`."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funcnets.cli import options
from funcnets.cli.option_kinds import directory

if TYPE_CHECKING:
    from torch import Tensor

    from funcnets.runs.export import Exported

FORMATS = ("torch", "onnx", "aot")
# Largest difference of a logit from the evaluation's, relative to the largest logit above 1.
TOLERANCES = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 5e-2}


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=directory, help="A run directory.")],
    to: Annotated[
        str, typer.Option(metavar="NAMES", help="torch, onnx or aot, or several: torch,onnx.")
    ] = "torch",
    dataset: options.DataSet = None,
    data: options.Data = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Write a run's network as RUN/export/model.pt2 (torch), model.onnx or model.aot.pt2 (aot).

    torch is a program of torch.export, aot a package that AOTInductor compiled.  The input is
    prepared images, float (N, C, H, W) of any batch size, the output the logits.  Names of classes
    and the preparation are its metadata.  Each file is read again, and compared with the evaluation
    of all test images.  onnx is in float32, and needs:
    pip install 'funcnets\\[export]'.
    """
    formats = [name.strip() for name in to.split(",")]
    if not set(formats) <= set(FORMATS):
        raise ValueError(f"--to is {to!r}; expected names of {', '.join(FORMATS)}")
    from dataclasses import replace

    from funcnets import runs
    from funcnets._extras import MissingExtraError
    from funcnets.cli import run_results
    from funcnets.cli.reporters import Reporter
    from funcnets.runs import export

    given = {"dataset": dataset, "data": data, "device": device}
    setup = run_results.open_run(run, options.fields(options.EVAL_FIELDS, given))
    config, expected = setup.config, run_results.predict(setup).logits
    values, step = runs.evaluated(setup.train_state), runs.steps_done(setup.train_state)
    images = setup.dataset.test_images
    for name in formats:
        path = run / "export" / export.FILES[name]
        # ONNX has no convolutions in bfloat16.
        made = replace(config, precision="float32") if name == "onnx" else config
        program = export.trace(export.as_module(setup.net, *values, made), made)
        export.WRITERS[name](program, path, export.metadata_of(made, step))
        try:
            exported = export.READERS[name](path)
        except MissingExtraError as error:
            Reporter().warn(f"{path} is written, but not checked: {error}")
            continue
        except Exception as error:
            path.unlink()
            raise RuntimeError(f"{path}: can't be read again ({error}); it was removed") from error
        measured = _compare(exported, images, config, expected)
        _check(path, measured, TOLERANCES[config.precision])
        if json:
            print(json_format.dumps({"format": name, "path": str(path), **measured}))
        else:
            print(
                f"{path}: equals the evaluation of {len(images):,} test images, logits to "
                f"{measured['difference']:.1e}"
            )


def _compare(
    exported: "Exported", images: "Tensor", config: Any, expected: "Tensor"
) -> dict[str, Any]:
    """Return how far an exported network's logits are from those of the evaluation.

    The first image is a batch of its own, so that two batch sizes are tried at least.
    """
    import torch

    from funcnets import data
    from funcnets.runs import recipe

    prepare, size = recipe.preparation(config), config.batch_size
    rest = data.batches(torch.arange(1, len(images)), size)
    with torch.no_grad():
        parts = [exported.logits(prepare(images[i])) for i in (torch.arange(1), *rest)]
    found = torch.cat([part.cpu() for part in parts])
    scale = max(1.0, float(expected.abs().max()))
    same = found.argmax(1) == expected.argmax(1)
    return {
        "difference": float((found - expected).abs().max()) / scale,
        "same_predictions": float(same.double().mean()),
        "images": len(images),
    }


def _check(path: Path, measured: dict[str, Any], tolerance: float) -> None:
    """Raise RuntimeError, and remove the file, unless the difference is below the tolerance."""
    if not measured["difference"] <= tolerance:
        path.unlink()
        raise RuntimeError(
            f"{path}: its logits differ from the evaluation's by {measured['difference']:.1e} of "
            f"the largest one; expected at most {tolerance:g}; it was removed"
        )
