"""Classic convolutional networks, their blocks, and a recipe of training for each network."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from funcnets.core import Layer
from funcnets.models import torchvision
from funcnets.models.alexnet import alexnet
from funcnets.models.densenet import dense_block, densenet, transition_block
from funcnets.models.googlenet import googlenet, inception
from funcnets.models.lenet import lenet_bn, lenet_bn_scratch
from funcnets.models.nin import nin, nin_block
from funcnets.models.resnet import bottleneck_block, residual_block, resnet, resnet18
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
    "inception",
    "lenet_bn",
    "lenet_bn_scratch",
    "nin",
    "nin_block",
    "residual_block",
    "resnet",
    "resnet18",
    "torchvision",
    "transition_block",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg_block",
]

Schedule = Literal["constant", "linear"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a training by plain SGD on cross-entropy.

    Attributes:
        learning_rate: learning rate of the first step.
        batch_size: examples in a step; the last step of an epoch may have fewer.
        side: height and width to which images are resized, in pixels.
        schedule: `constant` learning rate, or `linear` to zero at the last step.
        epochs: passes over the training images.
    """

    learning_rate: float
    batch_size: int
    side: int
    schedule: Schedule = "constant"
    epochs: int = 10


class Entry(NamedTuple):
    """A network in the index: how it is built and trained.

    `shown` names the parameters whose trained values `funcnets train` prints at the end.
    """

    build: Callable[..., Layer]
    recipes: dict[str, Recipe]
    shown: tuple[str, ...] = ()


def _recipes(reference: Recipe, **tuned: Any) -> dict[str, Recipe]:
    return {"tuned": replace(reference, schedule="linear", **tuned), "reference": reference}


# Reference rates, batch sizes and sides are those of the published results.  The tuned batch of
# LeNet is smaller, so that the 10,000 images in the package give enough steps.
INDEX: dict[str, Entry] = {
    "alexnet": Entry(alexnet, _recipes(Recipe(0.01, 128, 224))),
    "vgg11": Entry(vgg11, _recipes(Recipe(0.01, 128, 224))),
    "nin": Entry(nin, _recipes(Recipe(0.1, 128, 224))),
    "googlenet": Entry(googlenet, _recipes(Recipe(0.1, 128, 96))),
    "lenet_bn": Entry(lenet_bn, _recipes(Recipe(1.0, 256, 28), batch_size=128)),
    "lenet_bn_scratch": Entry(
        lenet_bn_scratch,
        _recipes(Recipe(1.0, 256, 28), batch_size=128),
        shown=("bn1.weight", "bn1.bias"),
    ),
    "resnet18": Entry(resnet18, _recipes(Recipe(0.05, 256, 28))),
    "densenet": Entry(densenet, _recipes(Recipe(0.1, 256, 96))),
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
        recipe: `tuned`, or `reference` for the published one.
        options: arguments of the network's function, such as `num_classes=100`.

    Raises ValueError for an unknown network or recipe, with the nearest known name.

    >>> from funcnets import models
    >>> net, recipe = models.get("lenet_bn", num_classes=3)
    >>> recipe.batch_size, recipe.learning_rate
    (128, 1.0)
    """
    entry: Entry = _choose("network", name, INDEX)
    chosen: Recipe = _choose("recipe", recipe, entry.recipes)
    return entry.build(**options), chosen
