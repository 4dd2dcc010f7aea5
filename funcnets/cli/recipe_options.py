"""Options of the recipe of a training: what its steps compute."""

from typing import Annotated, Any

import typer

from funcnets.cli.option_kinds import RECIPE, choice, number, switch

Recipe = Annotated[
    str | None,
    choice(
        "recipe",
        ", the published one: source of the values that you leave out. The learning rate of "
        "tuned falls linearly to zero.",
        RECIPE,
        show_default="tuned",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the training images.", rich_help_panel=RECIPE),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Images a step.", rich_help_panel=RECIPE)
]
Schedule = Annotated[str | None, choice("schedule", ": course of the learning rate.", RECIPE)]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        metavar="RATE",
        help="Learning rate, the highest of the schedule.",
        rich_help_panel=RECIPE,
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        metavar="RATE,...",
        help="Learning rates, such as 0.05,0.1,0.5.",
        rich_help_panel=RECIPE,
    ),
]
Optimizer = Annotated[
    str | None,
    choice(
        "optimizer",
        ": rule of the updates. The usual rate of adam and adamw is 0.001.",
        RECIPE,
        show_default="sgd",
    ),
]
Momentum = number("F", "Momentum of sgd, such as 0.9.", "0")
Nesterov = Annotated[bool | None, switch("--nesterov", "Take Nesterov's momentum.", RECIPE)]
WeightDecay = number(
    "F", "Weight decay, of all parameters but biases and those of batch norm.", "0"
)
ClipNorm = number("NORM", "Clip gradients to this global norm.", "no clipping")
LabelSmoothing = number("F", "Spread this part of each label over all classes.", "0")
Warmup = number("EPOCHS", "Climb to the learning rate in so many epochs, or a part of one.", "0")
Ema = number(
    "DECAY",
    "Evaluate a moving average of parameters and statistics, of this decay, such as 0.999.",
    "none",
)
Dropout = number("RATE", "Rate of the dropout of networks that have one.", "the network's")
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="crop, flip, cutout and mixup, those you name in their order: changes of the images "
        "inside the step, keyed by the seed.",
        show_default="none",
        rich_help_panel=RECIPE,
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Take N images at a time into memory; gradients and statistics are those of the "
        "whole batch.",
        show_default="the whole batch",
        rich_help_panel=RECIPE,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Stop after N epochs without a better one on the validation part.",
        show_default="after the last epoch",
        rich_help_panel=RECIPE,
    ),
]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN,...",
        help="Leave parameters with such names as they are, as stem.*,stage1.*; see `funcnets "
        "summary NET` for names.",
        show_default="none",
        rich_help_panel=RECIPE,
    ),
]
Recalibrate = Annotated[
    bool | None,
    switch(
        "--recalibrate",
        "Measure the running statistics of batch norms anew after the last epoch, for trainings of "
        "few steps.",
        RECIPE,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="SOURCE",
        help="Begin with the values of a run, or of a .safetensors or .pt file, where name and "
        "shape fit; what differs is listed.",
        show_default="random values",
        rich_help_panel=RECIPE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Seed of the initial values, the order of images, and dropout.",
        show_default="0",
        rich_help_panel=RECIPE,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Train seeds 0 to N - 1 with each learning rate.",
        show_default="8",
        rich_help_panel=RECIPE,
    ),
]

# Fields that decide what a step computes, with one process or several.
RECIPE_FIELDS: dict[str, Any] = {
    "optimizer": Optimizer,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "weight_decay": WeightDecay,
    "clip_norm": ClipNorm,
    "label_smoothing": LabelSmoothing,
    "warmup": Warmup,
    "dropout": Dropout,
    "augment": Augment,
    "ema": Ema,
    "accumulate": Accumulate,
    "freeze": Freeze,
}
