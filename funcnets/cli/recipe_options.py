"""Options of the recipe of a training: what its steps compute."""

from typing import Annotated, Any

from funcnets.cli.option_kinds import RECIPE, choice, number, switch, value

Recipe = Annotated[
    str | None,
    choice(
        "recipe",
        ": source of the values that you leave out. The learning rate of tuned falls linearly to "
        "zero, and networks without batch norm have Adam there; reference is the published recipe "
        "(by the rate of googlenet, 0.1, the loss of some seeds jumps up); best, of lenet_bn, "
        "lenet_bn_scratch and resnet18, trains longer, with momentum, augmentation and averages.",
        RECIPE,
        show_default="tuned",
    ),
]
Epochs = Annotated[
    int | None,
    value(
        "N",
        "Passes over the training images.",
        RECIPE,
    ),
]
BatchSize = Annotated[
    int | None,
    value(
        "N",
        "Images a step.",
        RECIPE,
    ),
]
Schedule = Annotated[str | None, choice("schedule", ": course of the learning rate.", RECIPE)]
LearningRate = Annotated[
    float | None,
    value(
        "RATE",
        "Learning rate, the highest of the schedule.",
        RECIPE,
        "--lr",
        "--learning-rate",
    ),
]
Rates = Annotated[
    str | None,
    value(
        "RATE,...",
        "Learning rates, such as 0.05,0.1,0.5.",
        RECIPE,
        "--lr",
        "--learning-rate",
    ),
]
Optimizer = Annotated[
    str | None,
    choice(
        "optimizer",
        ": rule of the updates. Where it is not the recipe's, the usual rate of adam and adamw is "
        "0.001, and that of sgd is the recipe reference's.",
        RECIPE,
        show_default="the recipe's",
    ),
]
Momentum = number("F", "Momentum of sgd, such as 0.9.", "the recipe's")
Nesterov = Annotated[bool | None, switch("--nesterov", "Use Nesterov's momentum.", RECIPE)]
WeightDecay = number(
    "F", "Weight decay, of all parameters but biases and those of batch norm.", "0"
)
ClipNorm = number("NORM", "Scale down gradients whose global norm is above this.", "no clipping")
LabelSmoothing = number("F", "Spread this part of each label over all classes.", "0")
Warmup = number(
    "EPOCHS", "Raise the learning rate in the first epochs, such as 2 or 0.5.", "the recipe's"
)
Ema = number(
    "DECAY",
    "Evaluate a moving average of parameters and statistics, of this decay, such as 0.999.",
    "none",
)
Dropout = number("RATE", "Rate of the dropout of networks that have one.", "the network's")
Augment = Annotated[
    str | None,
    value(
        "NAME,...",
        "crop, flip, cutout and mixup, those you name in their order: changes of the images "
        "inside the step, keyed by the seed.",
        RECIPE,
        show_default="none",
    ),
]
Accumulate = Annotated[
    int | None,
    value(
        "N",
        "Take N images at a time into memory; gradients and statistics are those of the "
        "whole batch.",
        RECIPE,
        show_default="the whole batch",
    ),
]
Patience = Annotated[
    int | None,
    value(
        "N",
        "Stop after N epochs without a better one on the validation part.",
        RECIPE,
        show_default="after the last epoch",
    ),
]
Freeze = Annotated[
    str | None,
    value(
        "PATTERN,...",
        "Leave parameters with such names as they are, as stem.*,stage1.*; see `funcnets "
        "summary NET` for names.",
        RECIPE,
        show_default="none",
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
    value(
        "SOURCE",
        "Begin with the values of a run, or of a .safetensors or .pt file, where name and "
        "shape fit; what differs is listed.",
        RECIPE,
        "--init-from",
        show_default="random values",
    ),
]
Seed = Annotated[
    int | None,
    value(
        "N",
        "Seed of the initial values, the order of images, and dropout.",
        RECIPE,
        show_default="0",
    ),
]
Seeds = Annotated[
    int | None,
    value(
        "N",
        "Train seeds 0 to N - 1 with each learning rate.",
        RECIPE,
        show_default="8",
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
