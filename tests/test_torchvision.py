"""torchvision's networks by the library's own layers: its weights fit, and the logits are equal."""

import pytest
import torch
import torchvision
from torch import nn

from funcnets import interop, models, random, tree
from funcnets.interop import InteropError
from funcnets.testing import assert_close

QUICK = ("resnet34", "vgg19_bn")
SIDES = {"googlenet": 90}


def module(name, num_classes=7):
    """A network of torchvision with random weights and statistics, in float64 for evaluation."""
    special = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)(weights=None, num_classes=num_classes, **special)
        if name.startswith("vgg"):  # the linear layers have 120 million parameters
            net.classifier[0] = nn.Linear(512 * 7 * 7, 16)
            net.classifier[3], net.classifier[6] = nn.Linear(16, 16), nn.Linear(16, num_classes)
        for buffer_name, buffer in net.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if "var" in buffer_name else buffer.normal_(0, 0.1)
    return net.double().eval()


def ours(name, state_dict, x, **options):
    narrow = {"hidden": 16} if name.startswith("vgg") else {}
    net, rename = models.torchvision.get(name, num_classes=7, **narrow, **options)
    like = net.init(random.key(0, "meta"), x.to("meta"))
    return net, *interop.from_state_dict(state_dict, like=like, rename=rename)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg11_bn",
        "googlenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vgg16", "resnet50", "densenet121")
        ),
    ],
)
def test_logits_are_torchvisions(name):
    theirs, side = module(name), SIDES.get(name, 64)
    x = random.normal(random.key(1), (2, 3, side, side), torch.float64)
    net, params, state = ours(name, theirs.state_dict(), x)
    with torch.no_grad():
        assert_close({"": net.apply(params, state, x)[0]}, {"": theirs(x)})


def test_googlenet_transforms_its_input_and_leaves_the_auxiliary_heads_out():
    theirs, x = module("googlenet"), random.normal(random.key(1), (2, 3, 90, 90), torch.float64)
    theirs.transform_input = True
    entries = theirs.state_dict() | {"aux1.fc1.weight": torch.zeros(3), "aux2.x": torch.zeros(1)}
    net, params, state = ours("googlenet", entries, x, transform_input=True)
    with torch.no_grad():
        assert_close({"": net.apply(params, state, x)[0]}, {"": theirs(x)})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in models.torchvision.FORMS
        if name != "googlenet"  # which has auxiliary heads there
    ],
)
def test_every_name_fits(name):
    with torch.device("meta"):
        state_dict = getattr(torchvision.models, name)(weights=None).state_dict()
    net, rename = models.torchvision.get(name)
    x = torch.empty(1, 3, 224, 224, device="meta")
    like = net.init(random.key(0, "meta"), x)
    params, state = interop.from_state_dict(state_dict, like=like, rename=rename)
    assert tree.difference((params, state), like) is None


def test_densenets_published_names_have_dots_more():
    _, rename = models.torchvision.get("densenet121")
    published = "features.denseblock1.denselayer2.norm.1.running_mean"
    assert rename(published) == "dense1.layer2.bn1.running_mean"
    assert rename(published.replace("norm.1", "norm1")) == "dense1.layer2.bn1.running_mean"


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"is called 'resnet19': known are .*'resnet18'"):
        models.torchvision.get("resnet19")
    net, rename = models.torchvision.get("vgg11", hidden=16)
    like = net.init(random.key(0, "meta"), torch.empty(1, 3, 32, 32, device="meta"))
    with pytest.raises(InteropError, match=r"22 missing.*1 unexpected: other\.weight"):
        interop.from_state_dict({"other.weight": torch.ones(1)}, like=like, rename=rename)


def test_an_entry_without_a_name_is_left_out():
    entries = {"weight": torch.ones(2), "bias": torch.ones(3)}
    params, _ = interop.from_state_dict(entries, rename=lambda n: n if n == "bias" else None)
    assert list(params) == ["bias"]
