"""Small modules that do what modules of the world do, for the tests of `interop.lift`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

IMAGES, ROWS = (4, 3, 6, 6), (5, 4)


class Block(nn.Module):
    """Convolution, batch norm, activation in place and dropout, added to the input."""

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.conv(x)))) + x


class Classifier(nn.Module):
    """A network with all that transforms treat in a special way."""

    def __init__(self, rate: float = 0.25) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(4, rate), Block(4, rate))
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(rate)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(torch.tanh(self.stem(x)))
        return self.head(self.dropout(self.norm(y.mean((2, 3)))))


class Tied(nn.Module):
    """Two layers with one weight, and a batch norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = self.alias = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.second(torch.tanh(self.norm(self.first(x)))))


class Buffers(nn.Module):
    """Buffers that are written in place, assigned anew, and left out of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("last", torch.zeros(4), persistent=False)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total.add_(x.detach().sum(0))
            self.last = x.detach()[-1]
            self.calls += 1
        return self.scale * x + self.total + self.last


class Norms(nn.Module):
    """Batch norms of all kinds, and the norms of single examples."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.BatchNorm1d(3, momentum=None)
        self.images = nn.BatchNorm2d(3, affine=False, eps=1e-3)
        self.volumes = nn.BatchNorm3d(3, momentum=0.3)
        self.group, self.layer = nn.GroupNorm(3, 3), nn.LayerNorm(6)
        self.instance = nn.InstanceNorm2d(3, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.images(self.rows(x.flatten(2)).view_as(x))
        x = self.volumes(x[:, :, None]).squeeze(2)
        return self.instance(torch.tanh(self.layer(self.group(x))))


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm whose forward is its own, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, variance = self.running_mean, self.running_var
        x = F.batch_norm(
            x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.relu(x, inplace=True)


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x[:, 0] = 0
        return self.fc(x.mul_(2))


class Lists(nn.Module):
    """A child that takes a list, one that takes two arguments, and lists and dicts of children."""

    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, xs: list[Tensor]) -> Tensor:
            return self.fc(torch.cat(xs, 1))

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.named = nn.ModuleDict({"join": self.Join()})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4))])
        self.bilinear = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        each = [fc(x) * self.scales[0] for fc in self.many]
        return self.bilinear(self.named["join"](each), input2=x)


def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 3)),
    )


class Aliases(nn.Module):
    """Children that are called by way of a list and a dict, which know them too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stages = [self.first, (self.second, {"norm": nn.LayerNorm(4)})]
        self.norm = self.stages[1][1]["norm"]

    def forward(self, x: Tensor) -> Tensor:
        first, (second, more) = self.stages
        return more["norm"](second(torch.tanh(first(x))))


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.0))
    module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    for child in module:
        child.register_forward_hook(lambda module, args, y: 2 * y)
    return module


MODULES = {
    "classifier": (lambda: Classifier(rate=0.0), IMAGES),
    "tied": (Tied, ROWS),
    "buffers": (Buffers, ROWS),
    "norms": (Norms, IMAGES),
    "norm_and_activation": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), NormAndActivation(4)),
        IMAGES,
    ),
    "writes_to_its_input": (WritesToItsInput, ROWS),
    "lists": (Lists, ROWS),
    "aliases": (Aliases, ROWS),
    "parametrized": (parametrized, ROWS),
    "hooked": (hooked, ROWS),
    "hard_activations": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 4), nn.Hardswish()),
        ROWS,
    ),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), ROWS),
    "batch_norm": (lambda: nn.BatchNorm2d(3), IMAGES),
    "single": (lambda: nn.Conv2d(3, 2, 3), IMAGES),
}
