"""Configurations: everything that decides what a training, or a sweep, computes."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Self, cast

import torch

from funcnets import augment, optim
from funcnets._validate import is_whole
from funcnets.compiler.backends.select import BACKENDS, Backend, training_backend
from funcnets.data.named import FASHION_MNIST
from funcnets.data.places import FASHION
from funcnets.models import Recipe
from funcnets.precision import PRECISIONS, usual
from funcnets.runs import networks

# A schedule by name: (learning rate, number of steps) -> what `optim.sgd` takes as its rate.
SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "constant": lambda rate, steps: rate,
    "linear": optim.linear,
    "cosine": optim.cosine,
    "one-cycle": optim.one_cycle,
}
KNOWN_VALUES: dict[str, Collection[str]] = {
    "schedule": SCHEDULES,
    "backend": BACKENDS,
    "precision": PRECISIONS,
    "optimizer": ("sgd", "adam", "adamw"),
}
ADAM_RATE = 0.001  # learning rate of adam and adamw where nobody chose one
WHOLE_NUMBERS = (
    *("epochs", "batch_size", "side", "limit_train", "channels", "patience", "accumulate"),
    "steps_per_call",
)
OPTIONAL = ("limit_train", "patience", "accumulate", "clip_norm", "ema", "dropout")
_FRACTION = (lambda value: 0 <= value < 1), "a number from 0 to below 1, as 0.1"
_AMOUNT = (lambda value: 0 <= value < math.inf), "a finite number, 0 or more"
# What a number must be, and how that is said.
NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "validation": _FRACTION,
    "momentum": _FRACTION,
    "label_smoothing": _FRACTION,
    "ema": _FRACTION,
    "dropout": _FRACTION,
    "weight_decay": _AMOUNT,
    "warmup": _AMOUNT,
    "clip_norm": ((lambda value: 0 < value < math.inf), "a finite number above 0"),
}


LARGEST_WHOLE_NUMBER = 2**31 - 1  # steps are counted, and images addressed, by 64 bits
MOST_SEEDS = 10_000

# Fields that a sweep leaves as they are.
OF_ONE_NETWORK = (
    *("validation", "ema", "accumulate", "recalibrate", "init_from", "steps_per_call"),
)
# Fields of a configuration that say what the data are.
FACTS = ("class_names", "channels", "fingerprint", "mean", "deviation")


class ConfigError(ValueError):
    """A field of a configuration is out of range.

    Attributes:
        field: the name of the field.
        problem: its value and what was expected, such as `is 0; expected a whole number above 0`.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field} {self.problem}"


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training computes.  Raises ConfigError for a bad value.

    A field that is added later has a default, so that a config.json from before goes on to load.

    Attributes:
        network: the name of the network in `models.INDEX`, or an import path, such as
            `my_package.my_net:build`; see `networks.build`.
        recipe: the name of the recipe that gave the values which nobody chose.
        schedule: the course of the learning rate, a key of `SCHEDULES`.
        learning_rate: the highest learning rate.
        batch_size: examples a step; the last step of an epoch takes what is left.
        side: pixels a side, to which images are resized.
        epochs: passes over the training images.
        seed: of initial values, the order of the examples and dropout.
        data: the directory of the data files, or `bundled`.
        limit_train: the number of training images that are used, the first ones; None for all.
        device: such as `cpu` or `cuda:0`.
        backend: that of `funcnets.jit`.
        deterministic: True for the same bits each time on a GPU, see `funcnets.jit`.
        steps_per_call: steps that are compiled as one call, see `train.make_multi_step`.
        precision: the name of a policy in `precision.POLICIES`, or `auto` until one was chosen.
        sync_batch_norm: True if batch norms of several processes normalise by the statistics of
            the whole batch, False if each by those of its share; see `parallel.gradient`.
        dataset: the name of the data set, as `data.load` takes it.
        validation: the fraction of the training images that isn't trained on: by it the best epoch
            is chosen, and the test images are looked at once, at the end.  0 for none.
        patience: epochs without a better one after which the training stops; None for all epochs.
        optimizer: `sgd`, `adam` or `adamw`.
        momentum: factor of the momentum buffer, for `sgd`.
        nesterov: True for Nesterov's momentum.
        weight_decay: factor of the weight decay, of all parameters but biases and those of batch
            norms, that is of those with two dimensions or more.
        clip_norm: the global norm to which gradients are clipped; None for no clipping.
        label_smoothing: see `losses.cross_entropy`.
        warmup: epochs, or a part of one, in which the learning rate climbs first.
        ema: decay of the moving average of parameters and statistics that is evaluated; None for
            none.
        dropout: rate of the network's dropout; None for its own.
        augment: names of augmentations in their order, such as `crop,flip`; empty for none.
        accumulate: examples in a micro-batch; None for whole batches.
        freeze: patterns of the names of parameters that stay as they are, such as
            `stem.*,stage1.*`; empty for none.  Running statistics are updated all the same.
        recalibrate: True to measure the running statistics of batch norms anew after the last
            epoch.
        init_from: a run directory or a file of weights, from which the initial values are taken
            where name and shape fit; None for random ones.
        normalize: True to subtract the mean of the training images, and divide by the deviation.

    The other fields are facts about the data (`FACTS`), which a training sets from them:

    Attributes:
        class_names: a name for each class.
        channels: channels of an image.
        fingerprint: that of the data, see `data.fingerprint`; None if it wasn't kept.
        mean: of each channel of the training images, in [0, 1]; () without `normalize`.
        deviation: the standard deviation of each channel; () without `normalize`.
    """

    network: str
    recipe: str
    schedule: str
    learning_rate: float
    batch_size: int
    side: int
    epochs: int
    seed: int
    data: str
    limit_train: int | None
    device: str
    backend: Backend
    precision: str = "float32"
    deterministic: bool = False
    steps_per_call: int = 1
    sync_batch_norm: bool = True
    dataset: str = FASHION
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    warmup: float = 0.0
    ema: float | None = None
    dropout: float | None = None
    augment: str = ""
    accumulate: int | None = None
    freeze: str = ""
    recalibrate: bool = False
    init_from: str | None = None
    normalize: bool = False
    validation: float = 0.0
    patience: int | None = None
    class_names: tuple[str, ...] = FASHION_MNIST.class_names
    channels: int = 1
    fingerprint: str | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in WHOLE_NUMBERS:
            value = getattr(self, field)
            if not is_whole(value, 1) and not (value is None and field in OPTIONAL):
                raise ConfigError(field, f"is {value!r}; expected a whole number above 0")
            if value is not None and value > LARGEST_WHOLE_NUMBER:
                raise ConfigError(field, f"is {value}; expected at most {LARGEST_WHOLE_NUMBER:,}")
        for field, (accepts, expected) in NUMBERS.items():
            value = getattr(self, field)
            if value is None and field in OPTIONAL:
                continue
            if not isinstance(value, Real) or not accepts(value):
                raise ConfigError(field, f"is {value!r}; expected {expected}")
        check_rate("learning_rate", self.learning_rate)
        if not is_whole(self.seed, -(2**63)) or self.seed >= 2**63:
            raise ConfigError("seed", f"is {self.seed!r}; expected an integer of 64 bits")
        try:
            networks.check_name(self.network)
        except ValueError as error:
            raise ConfigError("network", f"is {self.network!r}; {error}") from None
        for field, known in KNOWN_VALUES.items():
            if (value := getattr(self, field)) not in known:
                raise ConfigError(field, f"is {value!r}; expected one of {', '.join(known)}")
        self._check_together()

    def _check_together(self) -> None:
        """Raise ConfigError for a field that doesn't go with others."""
        if self.patience and not self.validation:
            raise ConfigError(
                "patience", f"is {self.patience}; it needs a part of the images for validation"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(
                "momentum",
                f"is {self.momentum}; the optimizer is {self.optimizer}, which has its own: choose "
                "sgd for it",
            )
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov", "is on; it needs a momentum, such as 0.9")
        if self.warmup >= self.epochs:
            raise ConfigError(
                "warmup", f"is {self.warmup:g} epochs; expected fewer than the {self.epochs}"
            )
        if self.dropout is not None and not networks.has_dropout(self.network):
            raise ConfigError("dropout", f"is {self.dropout}; {self.network} has no dropout")
        try:
            augment.by_name(self.augment or "flip", 1)
        except ValueError as error:
            raise ConfigError("augment", f"is {self.augment!r}: {error}") from None

    @property
    def label(self) -> str:
        """The last part of a run directory's usual name, after the network and the recipe."""
        return f"seed{self.seed}"

    @property
    def fixed(self) -> dict[str, Any]:
        """The fields that a resume may not change, as they come back from JSON.

        Without the number of epochs at a constant rate, and without the place of the data.  A run
        that didn't keep their fingerprint has instead whether they are the bundled part.
        """
        values = asdict(self) | {"data": self.data == "bundled"}
        del values["device"]
        if self.fingerprint is not None:
            del values["data"], values["dataset"]
        if self.schedule == "constant":
            del values["epochs"]
        return cast(dict[str, Any], json.loads(json.dumps(values)))

    @classmethod
    def from_recipe(cls, network: str = "lenet_bn", recipe: str = "tuned", **values: Any) -> Self:
        """Return the configuration of a recipe, with other `values` for some of its fields.

        The seed is 0, the data are the bundled images, and the device is a GPU if there is one.
        With another kind of optimizer than the recipe's, the learning rate is 0.001 for Adam, and
        that of the recipe reference for SGD.

        Raises ValueError for an unknown network or recipe, ConfigError for a bad value, and
        TypeError for an unknown field.

        >>> Config.from_recipe("resnet18", epochs=3).learning_rate
        0.05
        """
        usual_device = "cuda" if torch.cuda.is_available() else "cpu"
        device = values.get("device", usual_device)
        values = {"learning_rate": _usual_rate(network, recipe, values)} | values
        defaults = _defaults(networks.recipe(network, recipe), values) | {
            "seed": 0,
            "data": "bundled",
            "limit_train": None,
            "device": device,
            "backend": training_backend(device),
            "precision": usual(device),
        }
        return cls(network=network, recipe=recipe, **defaults | values)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """Everything that decides what a sweep computes: a training for each seed and learning rate.

    `Config.seed` and `Config.learning_rate` are the first member's.

    Attributes:
        seeds: the number of seeds, 0, 1, ..., each trained with every rate.
        rates: the learning rates.
    """

    seeds: int
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        usual = {field.name: field.default for field in fields(self)}
        for name in OF_ONE_NETWORK:
            if (value := getattr(self, name)) != usual[name]:
                raise ConfigError(name, f"is {value}; a sweep can't have it")
        if not is_whole(self.seeds, 1):
            raise ConfigError("seeds", f"is {self.seeds!r}; expected a whole number above 0")
        if self.seeds > MOST_SEEDS:
            raise ConfigError("seeds", f"is {self.seeds}; expected at most {MOST_SEEDS:,}")
        for rate in self.rates:
            check_rate("rates", rate)
        if not self.rates or len({*self.rates}) < len(self.rates):
            shown = ", ".join(map(str, self.rates))
            raise ConfigError("rates", f"is {shown}; expected different learning rates")

    @property
    def label(self) -> str:
        """The last part of a run directory's usual name, after the network and the recipe."""
        return "sweep"

    @property
    def members(self) -> list[tuple[float, int]]:
        """Learning rate and seed of each member, in order."""
        return [(rate, seed) for rate in self.rates for seed in range(self.seeds)]

    @classmethod
    def from_recipe(
        cls,
        network: str = "lenet_bn",
        recipe: str = "tuned",
        *,
        rates: Sequence[float] = (),
        **values: Any,
    ) -> Self:
        """Return the configuration; arguments and errors are those of `Config.from_recipe`.

        `rates` are the learning rates of the members; without any, all have the recipe's.  A moving
        average of the recipe is left out, as a sweep can't have one.
        """
        rates = tuple(rates) or (_usual_rate(network, recipe, values),)
        values = {"ema": None} | values
        return super().from_recipe(network, recipe, learning_rate=rates[0], rates=rates, **values)


def _defaults(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe, without a momentum that doesn't go with `values`."""
    defaults = asdict(recipe)
    if values.get("optimizer", recipe.optimizer) != "sgd":
        del defaults["momentum"]
    if not values.get("momentum", defaults.get("momentum")):
        del defaults["nesterov"]
    return defaults


def _usual_rate(network: str, recipe: str, values: Mapping[str, Any]) -> float:
    """Return the learning rate where nobody chose one: that of the recipe for its optimizer."""
    usual = networks.recipe(network, recipe)
    is_sgd = values.get("optimizer", usual.optimizer) == "sgd"
    if is_sgd == (usual.optimizer == "sgd"):
        return usual.learning_rate
    return networks.recipe(network, "reference").learning_rate if is_sgd else ADAM_RATE


def check_rate(field: str, rate: Any) -> None:
    """Raise ConfigError unless a learning rate is a finite number above 0."""
    if not isinstance(rate, Real) or not 0 < float(rate) < math.inf:
        raise ConfigError(field, f"is {rate!r}; expected a finite number above 0")
