"""Gradual pruning against a slow, obvious reference."""

import pytest
import torch
from torch import nn

import models
from methods.cpg import choose_ratio, ratio_for_room, reasons_to_grow, weight_optimizer, width_multipliers
from methods.gradual_pruning import GradualPruning, smallest, sparsity_at
from methods.ownership import SharedNetwork
from methods.packnet import PackNetPruning

LENET = models.ARCHITECTURES["lenet5"]


def test_the_schedule_is_cubic():
    assert sparsity_at(0, initial=0.1, final=0.2, span=316) == pytest.approx(0.1)
    assert sparsity_at(316, initial=0.1, final=0.2, span=316) == 0.2
    assert sparsity_at(158, initial=0.0, final=0.8, span=316) == pytest.approx(0.8 * (1 - 0.5**3))
    assert sparsity_at(1000, initial=0.0, final=0.8, span=316) == 0.8


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_the_smallest_weights_are_those_found_by_sorting(share):
    torch.manual_seed(1)
    weight, among = torch.randn(7, 9), torch.rand(7, 9) < 0.7
    entries = [(abs(weight[i, j].item()), i, j) for i in range(7) for j in range(9) if among[i, j]]
    expected = torch.zeros(7, 9, dtype=torch.bool)
    for _, row, column in sorted(entries)[: round(share * len(entries))]:
        expected[row, column] = True
    assert torch.equal(smallest(weight, among=among, k=round(share * len(entries))), expected)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_ties_with_the_kth_smallest_are_pruned_too(k):
    weight = torch.tensor([[0.0, -2.0, 0.5], [2.0, 3.0, -1.0]])
    among = torch.tensor([[False, True, True], [True, True, False]])
    magnitudes = sorted(weight[among].abs().tolist())
    expected = among & (weight.abs() <= magnitudes[k - 1]) if k else torch.zeros_like(among)
    assert torch.equal(smallest(weight, among=among, k=k), expected)


def make(pruning, **settings):
    torch.manual_seed(0)
    shared = SharedNetwork(build=LENET)
    shared.begin_task("only", num_classes=3)
    optimizer = weight_optimizer(shared)
    optimizer.param_groups[0]["lr"] = 0.05
    method = pruning(shared=shared, weight_decay=0.01, optimizer=optimizer, **settings)
    method.before_task()
    return shared, optimizer, method


def step(shared, optimizer, method, seed):
    generator = torch.Generator().manual_seed(seed)
    shared.network.train()
    optimizer.zero_grad()
    inputs = torch.randn(8, 3, 32, 32, generator=generator)
    labels = torch.randint(3, (8,), generator=generator)
    torch.nn.functional.cross_entropy(shared.network(inputs), labels).backward()
    method.after_backward()
    optimizer.step()
    method.after_step()


def test_sparsity_follows_the_schedule_and_pruned_weights_stay_zero():
    shared, optimizer, method = make(GradualPruning, initial=0.0, final=0.8, interval=3, span=10)
    pruned = {
        name: torch.zeros_like(layer.owner, dtype=torch.bool) for name, layer in shared.layers().items()
    }
    expected = 0.0
    for number in range(1, 15):
        step(shared, optimizer, method, number)
        if number <= 10 and (number % 3 == 0 or number == 10):
            expected = sparsity_at(number, initial=0.0, final=0.8, span=10)
        for name, layer in shared.layers().items():
            free = layer.owner == 0
            assert free.sum().item() == round(expected * free.numel())
            assert (layer.weight[free] == 0).all()
            assert (pruned[name] & ~free).sum() == 0, "a pruned weight was revived"
            pruned[name] = free


def test_a_resumed_pruning_continues_its_schedule():
    settings = {"initial": 0.0, "final": 0.8, "interval": 3, "span": 10}
    shared, optimizer, method = make(GradualPruning, **settings)
    for number in range(1, 15):
        if number == 6:  # between two cuts
            state = method.state_dict()
            method = GradualPruning(shared=shared, weight_decay=0.01, optimizer=optimizer, **settings)
            method.load_state_dict(state)
            method.before_task()
        step(shared, optimizer, method, number)
        done = min(number // 3 * 3 if number < 10 else 10, 10)
        for owner in shared.owners().values():
            expected = sparsity_at(done, initial=0.0, final=0.8, span=10)
            assert (owner == 0).sum().item() == round(expected * owner.numel())


def test_momentum_does_not_revive_a_pruned_weight():
    shared, optimizer, method = make(GradualPruning, initial=0.0, final=0.5, interval=1, span=1)
    for number in range(3):
        step(shared, optimizer, method, number)
    for layer in shared.layers().values():
        free = layer.owner == 0
        assert (optimizer.state[layer.weight]["momentum_buffer"][free] == 0).all()
        assert (layer.weight[free] == 0).all()
        assert (layer.weight[~free] != 0).all()


def test_packnet_cuts_once_before_the_first_step_and_again_in_the_same_place():
    shared, optimizer, method = make(PackNetPruning, sparsity=0.5)
    cut = {name: layer.owner == 0 for name, layer in shared.layers().items()}
    for number in range(3):
        step(shared, optimizer, method, number)
    method.before_task()
    for name, layer in shared.layers().items():
        assert torch.equal(layer.owner == 0, cut[name])
        assert cut[name].sum().item() == round(0.5 * cut[name].numel())


def test_a_second_task_is_pruned_among_its_own_and_free_weights_also_when_it_resumes():
    shared, _, method = make(GradualPruning, initial=0.0, final=0.5, interval=1, span=1)
    method.prune(0.5)
    shared.begin_task("second", num_classes=3)
    for layer in shared.layers().values():
        nn.init.normal_(layer.weight)
    first = {name: owner == 1 for name, owner in shared.owners().items()}
    for sparsity in (0.25, 0.75):
        method = GradualPruning(
            shared=shared,
            weight_decay=0.0,
            optimizer=weight_optimizer(shared),
            initial=0.0,
            final=sparsity,
            interval=1,
            span=1,
        )
        method.prune(sparsity)
        for name, owner in shared.owners().items():
            assert torch.equal(owner == 1, first[name])
            assert (owner == 0).sum().item() == round(sparsity * (owner != 1).sum().item())


def test_the_ratio_chosen_is_the_highest_that_reaches_the_baseline():
    record = {0.0: 0.742, 0.5: 0.736, 0.8: 0.732, 0.9: 0.694, 0.95: 0.67}
    assert choose_ratio(record, baseline=0.718, allow_acc_loss=0.001) == 0.8
    assert choose_ratio(record, baseline=0.733, allow_acc_loss=0.001) == 0.8
    assert choose_ratio(record, baseline=0.7331, allow_acc_loss=0.001) == 0.5
    assert choose_ratio(record, baseline=0.9, allow_acc_loss=0.001) == 0.0
    assert choose_ratio({0.0: 1.0, 0.5: 67 / 72}, baseline=0.9306, allow_acc_loss=0.0) == 0.5
    assert choose_ratio({**record, 0.95: 0.72}, baseline=0.718, allow_acc_loss=0.0) == 0.95


def test_a_network_grows_while_it_is_under_its_baseline_or_cannot_fit_its_training_data():
    under, low = "under its baseline by 0.0100", "training accuracy 0.9500 is at most 0.95"
    assert reasons_to_grow(accuracy=0.65, baseline=0.66, train_accuracy=0.99) == [under]
    assert reasons_to_grow(accuracy=0.70, baseline=0.66, train_accuracy=0.95) == [low]
    assert reasons_to_grow(accuracy=0.65, baseline=0.66, train_accuracy=0.95) == [under, low]
    assert not reasons_to_grow(accuracy=0.66, baseline=0.66, train_accuracy=0.951)
    assert not reasons_to_grow(accuracy=67 / 72, baseline=0.9306, train_accuracy=0.99), "equal when rounded"
    assert reasons_to_grow(accuracy=0.65, baseline=0.66) == [under]
    assert width_multipliers(1.0, 2.0) == [1.0, 1.5, 2.0]
    assert width_multipliers(1.0, 1.0) == [1.0]
    assert width_multipliers(1.0, 1.7) == [1.0, 1.5]


def test_the_ratio_for_room() -> None:
    assert [ratio_for_room(remaining) for remaining in (0, 1, 2, 3, 9, 19, 50)] == [
        *(0.0, 0.5, 0.7, 0.8, 0.9, 0.9, 0.95)
    ]
