"""Every architecture: equivalence with torchvision, any width, no forgetting; and the registry."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck, ResNet

import CPG_cifar100_main_normal as cpg_script
import models
import packnet_models
from methods.cpg import CPG, piggymask_optimizer, weight_optimizer
from methods.ownership import SharedNetwork
from models.conversion import convert
from models.layers import PLAIN, SHARABLE
from models.network import Network
from models.registry import CONVOLUTIONAL
from tests.helpers import Fleet, refusal

TORCHVISION = {
    "vgg16_bn": "vgg16_bn",
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    "mobilenetv2": "mobilenet_v2",
    **{f"efficientnetb{step}": f"efficientnet_b{step}" for step in range(8)},
}
PERCEIVERS = ("perceiver", "perceiver_io")
FEW_LATENTS = {"num_latents": 4, "latent_dim": 16, "depth": 2, "latent_heads": 2, "latent_dim_head": 8}
# A sixteenth of the weights, so that the largest architecture trains in a second.
NARROW, WIDER = 0.25, 0.35


def images(count: int, size: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(module: nn.Module, size: int) -> None:
    """Randomise weights, and set batch norm statistics to those of a batch of images, as after training.

    With other statistics, activations of deep networks would vanish, or grow until rounding errors show.
    """
    torch.manual_seed(0)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.reset_running_stats()
            layer.momentum = 1.0
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            bound = (6 / layer.weight[0].numel()) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.1, 0.1)
    if norms:
        module.train()(images(4, size, seed=1).to(norms[0].weight.dtype))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def original(name: str) -> nn.Module:
    """torchvision's model with all weights random."""
    with torch.device("meta"):
        model = get_model(name, weights=None, num_classes=10)
    model = model.to_empty(device="cpu").to(memory_format=torch.channels_last)
    randomise(model, 64)
    return model.eval()


def blueprint(build, **arguments) -> Network:
    with torch.device("meta"):
        return build(**arguments)


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_converted_architecture_computes_the_same_as_torchvisions(name):
    model = original(TORCHVISION[name])
    network = blueprint(models.ARCHITECTURES[name], size=64)
    head = network.add_head(10)
    state = model.state_dict()
    last = [key for key in state if key.startswith(("fc.", "classifier."))][-2:]
    head.load_state_dict({key.rpartition(".")[2]: state.pop(key) for key in last}, assign=True)
    network.features.load_state_dict(state, assign=True)
    inputs = images(2, 64)
    expected = model(inputs)
    assert expected.std() > 1e-3
    assert torch.allclose(network.eval()(inputs), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_vgg_for_cifar_has_torchvisions_convolutions_and_the_published_names():
    model = original("vgg16_bn")
    network = models.ARCHITECTURES["vgg16_bn_cifar100"]()
    convolutions = network.features[:44]
    convolutions.load_state_dict(model.features.state_dict())
    inputs = images(2, 32)
    assert torch.equal(convolutions.eval()(inputs), model.features(inputs))
    layers = SharedNetwork(build=partial(blueprint, models.ARCHITECTURES["vgg16_bn_cifar100"])).layers()
    linears = {name: tuple(layer.weight.shape) for name, layer in list(layers.items())[-2:]}
    assert linears == {"features.45": (4096, 512), "features.47": (4096, 4096)}


def test_both_packages_have_the_same_architectures():
    assert [*models.ARCHITECTURES] == [*packnet_models.ARCHITECTURES]
    assert {name for name, found in models.ARCHITECTURES.items() if found.multimodal} == set(PERCEIVERS)
    assert {*CONVOLUTIONAL, *PERCEIVERS} == models.ARCHITECTURES.keys()


def test_sizes_are_the_defaults_then_the_presets_then_the_given_ones():
    perceiver = models.ARCHITECTURES["perceiver"]
    assert perceiver.resolved_sizes({}) == perceiver.resolved_sizes({}, preset="base") == perceiver.sizes
    tiny = {"num_latents": 32, "latent_dim": 128, "depth": 4, "latent_heads": 4}
    assert perceiver.resolved_sizes({"depth": 4}, preset="tiny") == {**perceiver.sizes, **tiny}
    lenet5 = models.ARCHITECTURES["lenet5"]
    assert lenet5.resolved_sizes({}) == {}
    for found, given, preset, message in (
        (lenet5, {"depth": 2, "latent_dim": 8}, None, "lenet5 has no depth, latent_dim: leave it out"),
        (lenet5, {}, "tiny", "lenet5 has no preset tiny: leave it out"),
        (perceiver, {}, "huge", "perceiver has no preset huge: choose one of base, tiny"),
    ):
        with pytest.raises(ValueError, match=message):
            found.resolved_sizes(given, preset=preset)


@torch.no_grad()
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_old_channels_are_the_leading_ones_of_a_wider_network(name):
    build = packnet_models.ARCHITECTURES[name]
    width, wider = (1.0, 1.5**0.5) if name == "lenet5" else (NARROW, WIDER)
    narrow, wide = (build(width=channels, size=32).double() for channels in (width, wider))
    randomise(narrow.features, 32)
    state = {
        key: torch.ones_like(value) if key.endswith("running_var") else torch.zeros_like(value)
        for key, value in wide.features.state_dict().items()
    }
    for key, value in narrow.features.state_dict().items():
        state[key][tuple(slice(0, size) for size in value.shape)] = value
    wide.features.load_state_dict(state)
    inputs = images(2, 32).double()
    expected = narrow.eval().features(inputs)
    found = wide.eval().features(inputs)
    assert expected.std() > 1e-3
    assert found.shape[1] > expected.shape[1] == narrow.feature_width
    # Zeros change the order of summation. Some random networks are so deep and ill-conditioned that they
    # amplify the rounding error ten million times.
    assert torch.allclose(
        found[:, : narrow.feature_width], expected, rtol=0, atol=1e-5 * expected.abs().max()
    )


def test_grouped_convolutions_get_more_groups_of_the_same_width():
    def build(width: float) -> nn.Module:
        model = ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=16)
        model.fc = nn.Identity()
        return convert(model, layers=PLAIN, width=width, in_channels=3)

    assert build(1.0).layer1[0].conv2.groups == 4
    wide = build(1.5)
    assert wide.layer1[0].conv2.groups == 6
    assert wide.layer1[0].conv2.weight.shape == (96, 16, 3, 3)
    assert wide.eval()(images(2, 64)).shape == (2, 3072)


def train_one_step(shared: SharedNetwork, *, size: int) -> None:
    """Train one step that is large enough to expose a leak."""
    optimizers = [weight_optimizer(shared)]
    if len(shared.tasks) > 1 and hasattr(next(iter(shared.layers().values())), "piggymask"):
        optimizers.append(piggymask_optimizer(shared))
    for made in optimizers:
        made.param_groups[0]["lr"] = 0.01
    method = CPG(shared=shared, weight_decay=0.1, freeze_after=10)
    method.before_task()
    method.before_epoch(1)
    shared.network.train()
    method.loss(shared.network(images(4, size, seed=len(shared.tasks))), torch.arange(4)).backward()
    method.after_backward()
    for made in optimizers:
        made.step()
    method.after_step()


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        *((name, models) for name in CONVOLUTIONAL),
        *((name, packnet_models) for name in ("lenet5", "resnet18", "efficientnetb0")),
        *((name, registry) for name in PERCEIVERS for registry in (models, packnet_models)),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_no_architecture_forgets(name, registry):
    size = 32
    width, wider = (1.0, 1.5**0.5) if name in ("lenet5", *PERCEIVERS) else (NARROW, WIDER)
    sizes = FEW_LATENTS if name in PERCEIVERS else {}
    torch.manual_seed(0)
    build = partial(registry.ARCHITECTURES[name], in_channels=3, size=size, **sizes)
    shared = SharedNetwork(build=build, width=width)
    shared.begin_task("first", num_classes=4)
    randomise(shared.network, size)
    shared.release({key: torch.rand_like(layer.weight) < 0.5 for key, layer in shared.layers().items()})
    inputs = images(3, size, seed=9)
    with torch.no_grad():
        before = shared.as_task("first")(inputs)
    shared.begin_task("second", num_classes=4, width=wider)
    train_one_step(shared, size=size)
    with torch.no_grad():
        assert torch.equal(shared.as_task("first")(inputs), before)
        live = shared.network.eval()(inputs)
        assert torch.equal(shared.as_task("second")(inputs), live)
    assert before.isfinite().all() and before.std(0).min() > 0
    assert live.isfinite().all()


def test_every_convolution_and_linear_is_sharable():
    network = blueprint(models.ARCHITECTURES["efficientnetb0"])
    kinds = {type(layer) for layer in network.features.modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert kinds == {SHARABLE.conv2d}


@pytest.mark.parametrize(
    ("arch", "size"), [("vgg16_bn", 32), ("vgg16_bn_cifar100", 32), ("mobilenetv2", 32), ("resnet50", 16)]
)
def test_the_smallest_images_train_in_a_batch_of_one(arch, size):
    network = packnet_models.ARCHITECTURES[arch](size=size, width=NARROW)
    network.add_head(2)
    network.train()(images(1, size)).sum().backward()
    with pytest.raises(
        ValueError, match=f"images of {size - 1} pixels are too small: at least {size} are needed"
    ):
        packnet_models.ARCHITECTURES[arch](size=size - 1)


@pytest.mark.parametrize(
    ("arch", "size"), [("resnet18", 63), ("mobilenetv1", 63), ("mobilenetv2", 63), ("efficientnetb0", 63)]
)
def test_small_images_keep_their_resolution(arch, size):
    seen = {}
    for pixels in (size, size + 1):
        network = packnet_models.ARCHITECTURES[arch](size=pixels, width=NARROW)
        last = [layer for layer in network.features.modules() if isinstance(layer, nn.Conv2d)][-1]
        last.register_forward_hook(
            lambda _, __, output, pixels=pixels: seen.update({pixels: output.shape[-1]})
        )
        network.eval().features(images(1, pixels))
    assert seen == {size: 8 if arch == "resnet18" else 4, size + 1: 2}


def test_unknown_architectures_and_widths_are_refused_in_one_line(fresh: Fleet):
    flags = fresh.flags("--dataset", "zero_one", "--epochs", "1")
    line = refusal(cpg_script.main, [*flags, "--arch", "resnet19"])
    assert "--arch resnet19 is unknown: choose one of " in line
    assert ", resnet18, " in line
    line = refusal(cpg_script.main, [*flags, "--arch", "resnet18", "--network_width_multiplier", "0.0001"])
    assert "--arch resnet18: width 0.01 leaves none of 64 channels" in line
