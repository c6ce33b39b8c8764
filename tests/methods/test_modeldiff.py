"""ModelDiff against a float64 loop that evaluates every probe again for every mutation."""

import math

import pytest
import torch
from torch import nn

from methods.modeldiff import Model, compare, decision_distances, mutate


def net(seed: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, classes)).double()


def norm(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def slow_score(network, probes, initial):
    outputs, start = network(probes).tolist(), network(initial).tolist()
    n = len(outputs)
    shift = sum(norm(a, b) for a, b in zip(outputs, start, strict=True))
    pairs = sum(norm(outputs[i], outputs[j]) for i in range(n) for j in range(i + 1, n))
    return shift * pairs


def slow_mutate(probes, networks, *, iterations, epsilon, seed):
    initial, current = probes.clone(), probes.clone()
    generator = torch.Generator().manual_seed(seed)
    elements = torch.randint(probes.numel(), (iterations,), generator=generator).tolist()
    best = math.prod(slow_score(network, current, initial) for network in networks)
    for element in elements:
        tried, scores = [], []
        for change in (epsilon, -epsilon):
            tried.append(current.clone())
            tried[-1].view(-1)[element] += change
            scores.append(math.prod(slow_score(network, tried[-1], initial) for network in networks))
        sign = 0 if scores[0] > scores[1] else 1
        if scores[sign] > best:
            current, best = tried[sign], scores[sign]
    return current


@pytest.mark.parametrize(("count", "epsilon"), [(8, 0.1), (4, 2.0)])
def test_mutations_equal_those_of_the_slow_search(count, epsilon):
    networks, common = [net(1, 3), net(4, 5), net(6, 2)], net(2, 5)
    generator = torch.Generator().manual_seed(3)
    probe_sets = [torch.randn(count, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in networks]
    before = [probes.clone() for probes in probe_sets]
    mutated = mutate(probe_sets, networks, common, iterations=60, epsilon=epsilon, seeds=[7, 8, 9])
    for pair, (network, probes) in enumerate(zip(networks, probe_sets, strict=True)):
        with torch.no_grad():
            expected = slow_mutate(probes, (network, common), iterations=60, epsilon=epsilon, seed=7 + pair)
        torch.testing.assert_close(mutated[pair], expected, rtol=0, atol=1e-12)
        assert torch.equal(probes, before[pair])
        assert 10 < (mutated[pair] != probes).sum() <= 60


def mutate_one(*, element: float, scale: float, iterations: int = 1) -> float:
    """The first of two probes of one element each, after mutations; the other is 0 and outputs are scaled."""
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, scale)
    probes = torch.tensor([[element], [0.0]], dtype=torch.float64)
    seed = next(seed for seed in range(99) if drawn(seed, iterations=iterations) == [0] * iterations)
    (mutated,) = mutate([probes], [network], network, iterations=iterations, epsilon=0.1, seeds=[seed])
    assert mutated[1].item() == 0.0
    return mutated[0].item()


def drawn(seed: int, *, iterations: int) -> list[int]:
    return torch.randint(2, (iterations,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_mutation_takes_the_better_sign() -> None:
    # Either sign beats a score of 0, and moving away from the other probe spreads the outputs more.
    assert mutate_one(element=0.5, scale=1.0) == pytest.approx(0.6)
    assert mutate_one(element=-0.5, scale=1.0) == pytest.approx(-0.6)


def test_a_mutation_subtracts_epsilon_when_both_signs_tie() -> None:
    assert mutate_one(element=0.0, scale=1.0) == pytest.approx(-0.1)


def test_a_mutation_that_does_not_raise_the_score_is_undone() -> None:
    assert mutate_one(element=0.5, scale=0.0, iterations=2) == 0.5


def test_a_distance_does_not_depend_on_the_other_candidates():
    generator = torch.Generator().manual_seed(3)
    models = [
        Model(id=i, network=net(i, 3), probes=torch.randn(5, 12, dtype=torch.float64, generator=generator))
        for i in range(4)
    ]
    target, *candidates = models
    flags = {"iterations": 30, "epsilon": 0.1}
    together = compare(candidates, target, seeds=[1, 2, 3], **flags)
    (alone,) = compare(candidates[1:2], target, seeds=[2], **flags)
    assert together[1].euc == pytest.approx(alone.euc, abs=1e-12)
    assert together[1].cos == pytest.approx(alone.cos, abs=1e-12)


class NoGraph(nn.Linear):
    """Refuses to build a graph of the outputs, which would grow with every mutation."""

    def forward(self, inputs):
        assert not torch.is_grad_enabled()
        return super().forward(inputs)


def test_a_comparison_builds_no_graph():
    one, other = (Model(id=i, network=NoGraph(3, 2), probes=torch.randn(2, 3)) for i in (1, 2))
    compare([one], other, iterations=0, epsilon=0.1, seeds=[0])
    probes = torch.cat((one.probes, other.probes))
    mutate([probes], [one.network], other.network, iterations=1, epsilon=0.1, seeds=[0])


def test_distances_equal_a_loop_over_probe_pairs():
    outputs = torch.randn(10, 4, dtype=torch.float64)
    cos, euc = decision_distances(outputs)
    for i in range(5):
        a, b = outputs[i].tolist(), outputs[i + 5].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        zero = [0.0] * 4
        assert cos[i].item() == pytest.approx(1 - dot / (norm(a, zero) * norm(b, zero)))
        assert euc[i].item() == pytest.approx(norm(a, b))


def test_the_distance_to_itself_is_zero_and_distances_are_symmetric():
    probes = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    others = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    one, same = Model(id=1, network=net(1, 3), probes=probes), Model(id=2, network=net(1, 3), probes=others)
    (measured,) = compare([one], same, iterations=0, epsilon=0.1, seeds=[0])
    assert measured.cos == pytest.approx(0, abs=1e-12) and measured.euc == pytest.approx(0, abs=1e-12)
    other = Model(id=3, network=net(4, 5), probes=others)
    (forth,) = compare([one], other, iterations=0, epsilon=0.1, seeds=[0])
    (back,) = compare([other], one, iterations=0, epsilon=0.1, seeds=[0])
    assert forth.euc == pytest.approx(back.euc) and forth.euc > 1e-6
