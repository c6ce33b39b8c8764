"""The K/V transfer between networks, and ModelDiff across modalities, against slow loops."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.kv_transfer import bring, own_projection, prefix_of
from methods.modeldiff import Model, compare, features_on_keys_and_values
from methods.ownership import SharedNetwork
from models.layers import PLAIN, SHARABLE
from models.lenet5 import lenet5
from models.network import Network
from models.perceiver_io import perceiver_io
from utils.errors import UserError

SIZES = {
    "num_latents": 3,
    "latent_dim": 8,
    "depth": 1,
    "cross_dim_head": 4,
    "latent_heads": 2,
    "latent_dim_head": 3,
    "max_text_length": 9,
    "queries_dim": 4,
    "feature_width": 6,
}
SIDE = 4


def build(*, width: float = 1.0, layers=SHARABLE, **sizes) -> Network:
    return perceiver_io(layers=layers, dropout=0.1, width=width, size=SIDE, **(SIZES | sizes))


def trained(task: str, *, modality: str, seed: int, layers=SHARABLE, **sizes) -> SharedNetwork:
    """A network with random parameters, as if it had learned `task`."""
    torch.manual_seed(seed)
    shared = SharedNetwork(build=lambda width: build(width=width, layers=layers, **sizes))
    shared.begin_task(task, num_classes=3, modality=modality)
    with torch.no_grad():
        for parameter in shared.network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return shared


def half_pruned(shared: SharedNetwork) -> SharedNetwork:
    """The same network with every other weight free, like a pruned backbone."""
    shared.release(
        {
            name: torch.arange(layer.weight.numel()).view_as(layer.weight) % 2 == 0
            for name, layer in shared.layers().items()
        }
    )
    return shared


def images(count: int, *, seed: int = 5) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def texts(count: int, *, longest: int = 7, seed: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(count, longest, 768, generator=generator)
    for number in range(count):
        batch[number, 1 + number % longest :] = 0.0
    return batch


@torch.no_grad()
def logits(shared: SharedNetwork, task: str, inputs: Tensor) -> Tensor:
    return shared.as_task(task)(inputs)


@torch.no_grad()
def step(shared: SharedNetwork) -> None:
    """Change everything that the newest task may change."""
    index = len(shared.tasks)
    owned = {layer.weight: layer.owner == index for layer in shared.layers().values()}
    for parameter in shared.network.features.parameters():
        change = torch.randn_like(parameter)
        parameter += change.where(owned.get(parameter, torch.tensor(True)), 0.0)


@pytest.mark.parametrize("multiplier", [1.0, 2.0])
def test_a_target_reads_with_its_own_projection_and_the_backbones_trunk(multiplier: float) -> None:
    backbone = half_pruned(trained("pictures", modality="image", seed=1))
    target = trained("stories", modality="text", seed=2, layers=PLAIN)
    seen = images(4)
    before = logits(backbone, "pictures", seen)

    bring(own_projection(target, "stories"), into=backbone, target="stories")
    assert torch.equal(logits(backbone, "pictures", seen), before)
    backbone.begin_task("stories", num_classes=3, width=multiplier**0.5, modality="text")
    assert not backbone.arrivals

    inputs = texts(4)
    with torch.no_grad():
        kv, mask = target.as_task("stories").features.project(inputs, "text")
        network = backbone.as_task("stories")
        assert torch.equal(network(inputs), network.classifiers[0](network.features.trunk(kv, mask)))
    step(backbone)
    assert torch.equal(logits(backbone, "pictures", seen), before)


def test_every_transferred_tensor_affects_the_logits() -> None:
    projection = own_projection(trained("stories", modality="text", seed=2, layers=PLAIN), "stories")
    assert "features.inputs.text.positions" in projection
    assert all(name.startswith(prefix_of("text")) for name in projection)
    inputs = texts(4)

    def moved(projection: dict[str, Tensor]) -> Tensor:
        backbone = half_pruned(trained("pictures", modality="image", seed=1))
        bring(projection, into=backbone, target="stories")
        torch.manual_seed(3)
        backbone.begin_task("stories", num_classes=3, modality="text")
        return logits(backbone, "stories", inputs)

    expected = moved(projection)
    assert torch.equal(moved(projection), expected)
    for name in projection:
        changed = dict(projection)
        changed[name] = changed[name] + torch.randn(changed[name].shape, generator=torch.Generator())
        assert not torch.allclose(moved(changed), expected), name


def test_a_target_of_the_same_modality_does_not_change_the_backbones_projection() -> None:
    backbone = half_pruned(trained("pictures", modality="image", seed=1))
    target = trained("photos", modality="image", seed=2, layers=PLAIN)
    seen = images(4)
    before = logits(backbone, "pictures", seen)
    own = own_projection(backbone, "pictures")
    bring(own_projection(target, "photos"), into=backbone, target="photos")
    backbone.begin_task("photos", num_classes=3)
    assert torch.equal(logits(backbone, "pictures", seen), before)
    for name, value in own_projection(backbone, "photos").items():
        assert torch.equal(value, own_projection(target, "photos")[name])
        assert not torch.equal(value, own[name])


def test_arrivals_survive_saving(tmp_path: Path) -> None:
    backbone = half_pruned(trained("pictures", modality="image", seed=1))
    projection = own_projection(trained("stories", modality="text", seed=2, layers=PLAIN), "stories")
    bring(projection, into=backbone, target="stories")
    torch.save(backbone.payload(), tmp_path / "saved")
    payload = torch.load(tmp_path / "saved", weights_only=True)
    loaded = SharedNetwork.from_payload(payload, build=build, source=tmp_path / "saved")
    loaded.begin_task("stories", num_classes=3, modality="text")
    found = own_projection(loaded, "stories")
    assert found.keys() == projection.keys()
    assert all(torch.equal(found[name], projection[name]) for name in found)


def test_a_projection_that_does_not_fit_is_refused_by_name() -> None:
    backbone = trained("pictures", modality="image", seed=1)
    other = trained("stories", modality="text", seed=2, layers=PLAIN, cross_dim_head=5)
    with pytest.raises(
        UserError, match=r"features\.inputs\.text\.kv\.weight \(10, 768\) \(backbone: \(8, 768\)"
    ):
        bring(own_projection(other, "stories"), into=backbone, target="stories")
    with pytest.raises(UserError, match="already learned task pictures"):
        bring(own_projection(backbone, "pictures"), into=backbone, target="pictures")


def test_an_architecture_without_a_projection_is_refused() -> None:
    shared = SharedNetwork(build=lambda width: lenet5(layers=PLAIN, width=width, batch_norm=False, size=16))
    shared.begin_task("pictures", num_classes=2)
    with pytest.raises(UserError, match="no K/V projection for image inputs"):
        own_projection(shared, "pictures")


# ModelDiff across modalities.


def slow_distance(candidate: Model, target: Model) -> tuple[float, float]:
    """Probe by probe, in Python floats."""
    outputs: tuple[list, list] = ([], [])
    for owner in (candidate, target):
        for probe in owner.probes:
            length = probe.any(-1).sum() if owner.network.modality == "text" else None
            kv, _ = owner.network.features.project(probe[None, :length], owner.network.modality)
            for model, found in zip((candidate, target), outputs, strict=True):
                found.append(model.network.features.trunk(kv)[0].tolist())
    half = len(outputs[0]) // 2
    ddvs: dict[str, list[list[float]]] = {"cos": [], "euc": []}
    for found in outputs:
        pairs = list(zip(found[:half], found[half:], strict=True))
        ddvs["cos"].append([1 - cosine(a, b) for a, b in pairs])
        ddvs["euc"].append([math.dist(a, b) for a, b in pairs])
    return 1 - cosine(*ddvs["cos"]), 1 - cosine(*ddvs["euc"])


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def model(id: int, *, modality: str, probes: Tensor) -> Model:
    network = trained(f"task{id}", modality=modality, seed=id).as_task(f"task{id}")
    return Model(id=id, network=network.double(), probes=probes.double())


@torch.no_grad()
def test_distances_across_modalities_equal_those_of_one_probe_at_a_time() -> None:
    candidates = [
        model(1, modality="image", probes=images(13, seed=1)),
        model(2, modality="text", probes=texts(13, longest=5, seed=2)),
        model(3, modality="text", probes=texts(13, longest=7, seed=3)),
    ]
    for target in candidates:
        others = [candidate for candidate in candidates if candidate is not target]
        measured = compare(others, target, iterations=0, epsilon=0.1, seeds=[0] * 2)
        for other, found in zip(others, measured, strict=True):
            cos, euc = slow_distance(other, target)
            assert found.candidate == other.id
            assert found.cos == pytest.approx(cos, abs=1e-10) and found.cos > 1e-6
            assert found.euc == pytest.approx(euc, abs=1e-10) and found.euc > 1e-6


def test_the_comparison_does_not_depend_on_which_network_is_the_target() -> None:
    one = model(1, modality="image", probes=images(6))
    other = model(2, modality="text", probes=texts(6))
    (forth,) = compare([one], other, iterations=0, epsilon=0.1, seeds=[0])
    (back,) = compare([other], one, iterations=0, epsilon=0.1, seeds=[0])
    assert (forth.cos, forth.euc) == pytest.approx((back.cos, back.euc), abs=1e-12)


def test_features_of_keys_and_values_carry_no_graph() -> None:
    one, other = (model(id, modality="image", probes=images(2)) for id in (1, 2))
    assert not any(features.requires_grad for features in features_on_keys_and_values(one, other))


def test_keys_and_values_are_not_mutated() -> None:
    one, other = (model(id, modality="image", probes=images(4)) for id in (1, 2))
    with pytest.raises(ValueError, match="not mutated"):
        compare([one], other, iterations=1, epsilon=0.1, seeds=[0])
