"""Classic convolutional networks, their blocks, and a recipe of training for each network."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from funcnets._pickling import with_origin
from funcnets.core import Layer, check_layer
from funcnets.models import torchvision
from funcnets.models.alexnet import alexnet
from funcnets.models.densenet import dense_block, densenet, transition_block
from funcnets.models.googlenet import googlenet, googlenet_paper, inception
from funcnets.models.lenet import lenet_bn, lenet_bn_scratch
from funcnets.models.nin import nin, nin_block
from funcnets.models.resnet import (
    bottleneck_block,
    residual_block,
    resnet,
    resnet18,
    resnet34,
    resnet50,
)
from funcnets.models.vgg import vgg, vgg11, vgg13, vgg16, vgg19, vgg_block

__all__ = [
    "INDEX",
    "Entry",
    "Recipe",
    "alexnet",
    "bottleneck_block",
    "dense_block",
    "densenet",
    "get",
    "googlenet",
    "googlenet_paper",
    "inception",
    "lenet_bn",
    "lenet_bn_scratch",
    "nin",
    "nin_block",
    "picklable",
    "residual_block",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "torchvision",
    "transition_block",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg_block",
]

Schedule = Literal["constant", "linear", "one-cycle"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a training on cross-entropy.

    The fields are some of those of `runs.Config`, which says more about them.  The learning rate is
    that of `optimizer`: `runs.build(runs.Config.from_recipe(name), steps)` makes both.

    Attributes:
        learning_rate: the highest learning rate.
        batch_size: examples in a step; the last step of an epoch may have fewer.
        side: height and width to which images are resized, in pixels.
        schedule: `constant` learning rate, `linear` to zero at the last step, or `one-cycle`, up
            and down again along half cosines.
        epochs: passes over the training images.
        optimizer: `sgd`, `adam` or `adamw`, whose rate it is.
        warmup: epochs, or a part of one, in which the learning rate climbs first.
        momentum: factor of the momentum buffer of `sgd`.
        nesterov: True for Nesterov's momentum.
        weight_decay: factor of the weight decay, not of biases and batch norms.
        label_smoothing: the part of each label that is spread over all classes.
        augment: names of augmentations in their order, such as `crop,flip`; empty for none.
        ema: decay of the moving average of parameters and statistics that is evaluated, or None.
        normalize: True to subtract the mean of the training images, and divide by the deviation.
    """

    learning_rate: float
    batch_size: int
    side: int
    schedule: Schedule = "constant"
    epochs: int = 10
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    warmup: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: str = ""
    ema: float | None = None
    normalize: bool = False


class Entry(NamedTuple):
    """A network in the index: how it is built and trained.

    `shown` names the parameters whose trained values `funcnets train` prints at the end.  `family`
    is the group in which `funcnets list` shows it; `is_benchmarked` is True if `funcnets bench all`
    has it.
    """

    build: Callable[..., Layer]
    recipes: dict[str, Recipe]
    shown: tuple[str, ...] = ()
    family: str = ""
    is_benchmarked: bool = True


def _recipes(reference: Recipe, best: Recipe | None = None, **tuned: Any) -> dict[str, Recipe]:
    known = {"tuned": replace(reference, schedule="linear", **tuned), "reference": reference}
    return known if best is None else known | {"best": best}


def _more(build: Callable[..., Layer], recipe: Recipe, family: str, **tuned: Any) -> Entry:
    return Entry(build, _recipes(recipe, **tuned), family=family, is_benchmarked=False)


_BEST: dict[str, Any] = {
    "schedule": "one-cycle",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "ema": 0.998,
}
_BEST_LENET = Recipe(
    0.3, 128, 28, epochs=30, label_smoothing=0.05, augment="flip", normalize=True, **_BEST
)
# Images are not moved at random: in 20 epochs a network with maps of 8x8 learns less of them so.
_BEST_RESNET = Recipe(0.1, 128, 32, epochs=20, label_smoothing=0.1, augment="flip", **_BEST)

# By SGD deep networks without batch norm stay on the plateau of chance for hundreds of steps, as
# the gradient of their first layers is small there; Adam's steps don't shrink with it.
_ADAM: dict[str, Any] = {"optimizer": "adam", "warmup": 0.5}
_WIDE_ADAM: dict[str, Any] = {"learning_rate": 3e-4, **_ADAM}  # fully connected, of 4096 features
_NARROW_ADAM: dict[str, Any] = {"learning_rate": 5e-4, **_ADAM}

_VGG = Recipe(0.01, 128, 224)
_GOOGLENET = Recipe(0.1, 128, 96)
_LENET = Recipe(1.0, 256, 28)
_RESNET = Recipe(0.05, 256, 28)

# Reference rates, batch sizes and sides are those of the published results, and for networks of a
# family those of its first one.  The tuned batch of LeNet is smaller, so that the 10,000 images in
# the package give enough steps.
INDEX: dict[str, Entry] = {
    "alexnet": Entry(alexnet, _recipes(Recipe(0.01, 128, 224), **_WIDE_ADAM), family="AlexNet"),
    "vgg11": Entry(vgg11, _recipes(_VGG, **_WIDE_ADAM), family="VGG"),
    "vgg13": _more(vgg13, _VGG, "VGG", **_WIDE_ADAM),
    "vgg16": _more(vgg16, _VGG, "VGG", **_WIDE_ADAM),
    "vgg19": _more(vgg19, _VGG, "VGG", **_WIDE_ADAM),
    "nin": Entry(nin, _recipes(Recipe(0.1, 128, 224), **_NARROW_ADAM), family="NiN"),
    "googlenet": Entry(googlenet, _recipes(_GOOGLENET, **_NARROW_ADAM), family="GoogLeNet"),
    "googlenet_paper": _more(googlenet_paper, _GOOGLENET, "GoogLeNet", **_NARROW_ADAM),
    "lenet_bn": Entry(lenet_bn, _recipes(_LENET, _BEST_LENET, batch_size=128), family="LeNet"),
    "lenet_bn_scratch": Entry(
        lenet_bn_scratch,
        _recipes(_LENET, _BEST_LENET, batch_size=128),
        shown=("bn1.weight", "bn1.bias"),
        family="LeNet",
    ),
    "resnet18": Entry(resnet18, _recipes(_RESNET, _BEST_RESNET), family="ResNet"),
    "resnet34": _more(resnet34, _RESNET, "ResNet"),
    "resnet50": _more(resnet50, _RESNET, "ResNet"),
    "densenet": Entry(densenet, _recipes(Recipe(0.1, 256, 96)), family="DenseNet"),
}


def _choose(kind: str, name: Any, known: dict[str, Any]) -> Any:
    if name not in known:
        text = str(name)
        begun = [other for other in known if text and other.startswith(text)]
        close = begun or difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no {kind} is called {name!r}: {hint}known are {', '.join(known)}")
    return known[name]


def has_dropout(name: str) -> bool:
    """True if the network called `name` takes the rate of its dropout."""
    return "rate" in inspect.signature(INDEX[name].build).parameters


def get(name: str, recipe: str = "tuned", **options: Any) -> tuple[Layer, Recipe]:
    """Return the network called `name` and its recipe.

    Args:
        name: key of `INDEX`, such as `resnet18`.
        recipe: `tuned`, `reference` for the published one, or, for small networks, `best`: more
            epochs with momentum, augmentation and averages, made for the full Fashion-MNIST set.
        options: arguments of the network's function, such as `num_classes=100`.

    Raises ValueError for an unknown network or recipe, with the nearest known name.

    >>> from funcnets import models
    >>> net, recipe = models.get("lenet_bn", num_classes=3)
    >>> recipe.batch_size, recipe.learning_rate
    (128, 1.0)
    """
    entry: Entry = _choose("network", name, INDEX)
    chosen: Recipe = _choose("recipe", recipe, entry.recipes)
    return picklable(entry.build, **options), chosen


def picklable(build: Callable[..., Layer], /, **options: Any) -> Layer:
    """Return `build(**options)`, a network that pickle sends to other processes as this call.

    Networks consist of functions, which pickle can't write.  `build` is a function of a module;
    arguments and what it gives must be the same in the other process.  Networks of `get` are made
    so.  A network that was changed, as by `core.rewrite`, can't be pickled any more.

    Raises TypeError if the function gives no Layer.

    >>> import pickle
    >>> from funcnets import models
    >>> pickle.loads(pickle.dumps(models.picklable(models.vgg11, num_classes=3))).kind
    'sequential'
    """
    net = build(**options)
    check_layer(net, "the network")
    made: Layer = with_origin(net, build, options)
    return made
