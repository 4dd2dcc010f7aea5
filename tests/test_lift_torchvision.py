"""torchvision's networks, lifted: equal to the modules, and under every transform."""

from functools import partial

import pytest
import torch
import torchvision
from tensors import same
from test_lift import KEY, assert_equals_module, by_name, copied, seeded
from torch import nn

import funcnets
from funcnets import checkpoint, interop, losses, models, optim, random, train, transforms, tree
from funcnets.testing import assert_close, random_like
from funcnets.transforms import ensemble

SIDE, CLASSES = 64, 5
X = random.normal(random.key(1), (4, 3, SIDE, SIDE), torch.float64)
BATCH = (X, torch.arange(4))
OPTIMIZER = optim.sgd(0.01, momentum=0.9)


def narrow_vgg(**options):
    """VGG-11 with batch norm, and without the 120 million parameters of its linear layers."""
    module = torchvision.models.vgg11_bn(**options)
    module.classifier[0] = nn.Linear(512 * 7 * 7, 16)
    module.classifier[3], module.classifier[6] = nn.Linear(16, 16), nn.Linear(16, CLASSES)
    return module


BUILDERS = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "vgg11_bn": narrow_vgg,
    "densenet121": torchvision.models.densenet121,
    "googlenet": partial(torchvision.models.googlenet, aux_logits=False, init_weights=False),
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "convnext_tiny": torchvision.models.convnext_tiny,
}
# PyTorch's gradient of hardsigmoid multiplies by 1/6 in float32, whatever its input.  Deep
# networks with few values per channel magnify rounding.
TOLERANCES = {"mobilenet_v3_small": 1e-7, "resnet50": 1e-8, "densenet121": 1e-8}
QUICK = ("mobilenet_v3_small",)
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BUILDERS]


def without_noise(module):
    for part in module.modules():
        if isinstance(part, nn.Dropout | torchvision.ops.StochasticDepth):
            part.p = 0.0
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_lifted_network_equals_the_module(name):
    module = without_noise(seeded(partial(BUILDERS[name], num_classes=CLASSES)))
    assert_equals_module(module, X, TOLERANCES.get(name, 1e-9))


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in BUILDERS])
def given(request):
    """A lifted network, its parameters, its state, and how exact its derivatives are."""
    net = interop.lift(seeded(partial(BUILDERS[request.param], num_classes=CLASSES)))
    return net, *net.init(KEY, X), TOLERANCES.get(request.param, 1e-9)


def gradients(net, params, state, gradient=train.batch_gradient):
    grads, after, measured = gradient(net, losses.cross_entropy, params, state, BATCH, key=KEY)
    return by_name(grads, after, measured)


@pytest.mark.parametrize(
    "given",  # with few batch norms: for each there is a pass over all before it
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet18", "vgg11_bn", "mobilenet_v3_small", "convnext_tiny")
    ],
    indirect=True,
)
def test_accumulation_is_exact(given):
    net, params, state, tolerance = given
    actual = gradients(net, params, state, transforms.accumulate(2))
    assert_close(actual, gradients(net, params, state), tolerance)


def test_gradients_of_examples(given):
    net, params, state, tolerance = given
    frozen = transforms.frozen_statistics(net)

    def loss_of(params, i):
        logits, _ = frozen.apply(params, state, X, train=True, key=KEY)
        return losses.cross_entropy(logits[i : i + 1], BATCH[1][i : i + 1])

    each = transforms.per_example_gradients(
        net, params, state, BATCH, key=KEY, statistics="frozen", chunk_size=2
    )
    expected = tree.transpose(torch.func.grad(loss_of)(params, i) for i in range(len(X)))
    assert_close(by_name(each.gradients), by_name(expected), tolerance)


def test_products_with_the_hessian(given):
    net, params, state, tolerance = given
    tangent = random_like(params, 1)

    @torch.func.grad
    def gradient(params):
        logits, _ = net.apply(params, state, X, train=True, key=KEY)
        return losses.cross_entropy(logits, BATCH[1])

    forward_over_reverse = torch.func.jvp(gradient, (params,), (tangent,))[1]
    (reverse_over_reverse,) = torch.func.vjp(gradient, params)[1](tangent)
    products = by_name(forward_over_reverse), by_name(reverse_over_reverse)
    assert_close(*products, 100 * tolerance)


def steps(step, train_state, count=2):
    for _ in range(count):
        train_state, measured = step(train_state, BATCH)
    return train_state, measured


def start(params, state, key=KEY):
    zero = torch.zeros((), dtype=torch.int64)
    return train.TrainState(zero, params, state, OPTIMIZER.init(params), key)


def test_donated_steps_under_jit_and_a_checkpoint(given, tmp_path):
    net, params, state, tolerance = given
    step = train.make_train_step(net, OPTIMIZER)
    jitted = funcnets.jit(step, donate_argnums=0, backend="graph")
    expected = steps(step, start(params, state))
    actual = steps(jitted, copied(start(params, state)))
    assert_close(by_name(*actual), by_name(*expected), 10 * tolerance)
    checkpoint.save(tmp_path, actual[0])
    assert same(checkpoint.load(tmp_path, start(params, state))[0], actual[0])


def test_members_train_as_they_do_alone(given):
    net, params, state, tolerance = given
    step = train.make_train_step(net, OPTIMIZER)
    other = tree.map(lambda leaf, noise: leaf + noise / 100, params, random_like(params, 2))
    each = [start(params, state), start(other, state, random.key(2))]
    members = steps(ensemble.make_ensemble_step(step), ensemble.stack(each), 1)
    alone = [steps(step, member, 1) for member in each]
    assert_close(by_name(*members), by_name(*ensemble.stack(alone)), 10 * tolerance)


@pytest.mark.slow
def test_a_lifted_resnet_is_our_own_bit_for_bit_under_jit():
    module = seeded(partial(BUILDERS["resnet18"], num_classes=CLASSES)).float()
    lifted, x = interop.lift(module), X.float()
    own, rename = models.torchvision.get("resnet18", num_classes=CLASSES)
    like = own.init(random.key(0, "meta"), x.to("meta"))
    values = {
        lifted: interop.from_module(module),
        own: interop.from_module(module, like=like, rename=rename),
    }
    traces, after = [], []
    for net, (params, state) in values.items():
        step = funcnets.jit(train.make_train_step(net, OPTIMIZER), backend="graph")
        traces.append(step.trace(start(params, state), (x, BATCH[1])).fired)
        after.append(step(start(params, state), (x, BATCH[1]))[0].params)
    assert traces[0] == traces[1]
    renamed = {rename(name): leaf for name, leaf in tree.flatten_named(after[0]).items()}
    assert same(tree.unflatten_named(renamed), after[1])
