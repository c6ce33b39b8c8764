"""Ownership: earlier tasks stay bit-identical."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import models
import packnet_models
from methods import ownership
from methods.cpg import CPG, piggymask_optimizer, piggymasks_of, weight_optimizer
from methods.gradual_pruning import GradualPruning
from methods.ownership import OwnedTraining, SharedNetwork, redraw_freed
from models.layers import PLAIN, SharableLinear
from models.lenet5 import lenet5
from training.loop import train_step
from utils.errors import UserError

CPG_LENET = models.ARCHITECTURES["lenet5"]
PACKNET_LENET = packnet_models.ARCHITECTURES["lenet5"]


def batch(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(4, (size,), generator=generator)


def learn(shared: SharedNetwork, *, steps: int, lr: float = 0.05, weight_decay: float = 0.1) -> None:
    """Train the newest task with a large learning rate and weight decay, so that a leak would show."""
    optimizer = weight_optimizer(shared)
    optimizers = [optimizer]
    if piggymasks_of(shared):
        optimizers.append(piggymask_optimizer(shared))
    for made in optimizers:
        made.param_groups[0]["lr"] = lr
    method = CPG(shared=shared, weight_decay=weight_decay, freeze_after=10**6)
    method.before_task()
    method.before_epoch(1)
    shared.network.train()
    for step in range(steps):
        inputs, labels = batch(step)
        for made in optimizers:
            made.zero_grad()
        cross_entropy(shared.network(inputs), labels).backward()
        method.after_backward()
        for made in optimizers:
            made.step()
        method.after_step()


def prune(shared: SharedNetwork, sparsity: float) -> None:
    optimizer = weight_optimizer(shared)
    GradualPruning(
        shared=shared,
        weight_decay=0.0,
        optimizer=optimizer,
        initial=0.0,
        final=sparsity,
        interval=1,
        span=1,
    ).prune(sparsity)


def first_task(build, *, sparsity: float = 0.6) -> SharedNetwork:
    torch.manual_seed(0)
    shared = SharedNetwork(build=build)
    shared.begin_task("first", num_classes=4)
    learn(shared, steps=4)
    prune(shared, sparsity)
    learn_pruned(shared)
    return shared


def learn_pruned(shared: SharedNetwork) -> None:
    learn(shared, steps=2)


@pytest.mark.parametrize("build", [CPG_LENET, PACKNET_LENET], ids=["cpg", "packnet"])
@pytest.mark.parametrize("widths", [(1.0, 1.0), (2.0**0.5, 2.0**0.5), (1.5**0.5, 2.0**0.5)])
def test_earlier_tasks_logits_stay_bit_identical(build, widths):
    inputs, _ = batch(99, size=32)
    shared = first_task(build)
    before_first = shared.as_task("first")(inputs)

    shared.begin_task("second", num_classes=4, width=widths[0])
    learn(shared, steps=5)
    prune(shared, 0.5)
    learn(shared, steps=2)
    before_second = shared.as_task("second")(inputs)
    assert torch.equal(shared.as_task("first")(inputs), before_first)

    shared.begin_task("third", num_classes=4, width=widths[1])
    learn(shared, steps=5)
    assert torch.equal(shared.as_task("first")(inputs), before_first)
    assert torch.equal(shared.as_task("second")(inputs), before_second)
    assert not torch.equal(shared.as_task("third")(inputs), before_second)


def test_the_live_network_and_its_dense_view_are_bit_identical():
    shared = first_task(CPG_LENET)
    shared.begin_task("second", num_classes=4, width=2.0**0.5)
    learn(shared, steps=5, lr=0.02)
    inputs, _ = batch(5)
    live = shared.network.eval()(inputs)
    assert torch.equal(live, shared.as_task("second")(inputs))
    picked = shared.shares("second").shared_ratio
    assert 0.0 < picked < 1.0, "the piggymasks must really pick"


@pytest.mark.parametrize("clip_grad_norm", [None, 1.0])
def test_a_nan_gradient_does_not_reach_another_tasks_weights(clip_grad_norm):
    shared = first_task(PACKNET_LENET)
    inputs, labels = batch(0)
    before = shared.as_task("first")(inputs)
    shared.begin_task("second", num_classes=4)
    method = OwnedTraining(shared=shared, weight_decay=0.1)
    method.before_task()
    optimizer = weight_optimizer(shared)
    optimizer.param_groups[0]["lr"] = 0.1
    broken = inputs.clone()
    broken[0, 0, 0, 0] = float("nan")
    loss, _ = train_step(
        network=shared.network,
        method=method,
        optimizers=[optimizer],
        inputs=broken,
        labels=labels,
        autocast=nullcontext(),
        clip_grad_norm=clip_grad_norm,
    )
    assert loss.isnan()
    assert torch.equal(shared.as_task("first")(inputs), before)


def test_a_weight_is_seen_by_its_owner_and_by_later_tasks_that_pick_it():
    shared = first_task(CPG_LENET)
    shared.begin_task("second", num_classes=4)
    learn(shared, steps=5, lr=0.02)
    seen = dict(shared.as_task("second").named_parameters())
    first = dict(shared.as_task("first").named_parameters())
    for name, layer in shared.layers().items():
        flat = zip(
            layer.owner.flatten().tolist(),
            layer.weight.flatten().tolist(),
            layer.piggymask.flatten().tolist(),
            seen[f"{name}.weight"].flatten().tolist(),
            first[f"{name}.weight"].flatten().tolist(),
            strict=True,
        )
        for owner, weight, piggymask, as_second, as_first in flat:
            assert owner in (1, 2)
            assert as_first == (weight if owner == 1 else 0.0)
            assert as_second == (weight if owner == 2 or piggymask > 0.005 else 0.0)


def test_growth_keeps_old_weights_leading_starts_freed_ones_at_zero_and_new_ones_at_random():
    shared = first_task(CPG_LENET)
    old = {name: (layer.weight.clone(), layer.owner.clone()) for name, layer in shared.layers().items()}
    shared.begin_task("second", num_classes=4, width=2.0**0.5)
    assert [tuple(layer.weight.shape) for layer in shared.layers().values()] == [
        (8, 3, 5, 5),
        (22, 8, 5, 5),
        (169, 550),
        (118, 169),
    ]
    for name, layer in shared.layers().items():
        weight, owner = old[name]
        region = tuple(slice(0, size) for size in weight.shape)
        assert torch.equal(layer.weight[region], weight)
        assert (layer.weight[region][owner == 0] == 0).all()
        assert torch.equal(layer.owner[region] == 1, owner == 1)
        added = torch.ones_like(layer.owner, dtype=torch.bool)
        added[region] = False
        assert (layer.owner[added] == 2).all()
        assert layer.weight[added].std() > 0


def test_private_tensors_start_from_the_backbones_and_then_diverge():
    shared = first_task(CPG_LENET)
    first = {name: value.clone() for name, value in shared.as_task("first").state_dict().items()}
    shared.begin_task("second", num_classes=4)
    start = shared.network.state_dict()
    for name in ("features.1.running_mean", "features.5.weight", "features.9.bias"):
        assert torch.equal(start[name], first[name])
    learn(shared, steps=3)
    after = shared.network.state_dict()
    for name in ("features.1.running_mean", "features.5.weight", "features.9.bias"):
        assert not torch.equal(after[name], first[name])
        assert torch.equal(shared.as_task("first").state_dict()[name], first[name])


def test_weight_decay_touches_owned_weights_only():
    shared = first_task(CPG_LENET)
    shared.begin_task("second", num_classes=4)
    method = OwnedTraining(shared=shared, weight_decay=0.5)
    method.before_task()
    for parameter in shared.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.after_backward()
    for layer in shared.layers().values():
        expected = torch.where(layer.owner == 2, 0.5 * layer.weight, torch.zeros(()))
        assert torch.equal(layer.weight.grad, expected)
    others = [*shared.network.classifiers.parameters(), shared.network.features[1].weight]
    assert all((parameter.grad == 0).all() for parameter in others)


@pytest.mark.parametrize("build", [CPG_LENET, PACKNET_LENET], ids=["cpg", "packnet"])
def test_a_network_survives_its_payload_unchanged(build, tmp_path):
    shared = first_task(build)
    shared.begin_task("second", num_classes=4, width=1.5**0.5)
    learn(shared, steps=3)
    again = SharedNetwork.from_payload(shared.payload(), build=build, source=tmp_path)
    inputs, _ = batch(7)
    for task in ("first", "second"):
        assert torch.equal(again.as_task(task)(inputs), shared.as_task(task)(inputs))
        assert again.shares(task) == shared.shares(task)
    learn(shared, steps=2)
    learn(again, steps=2)
    assert torch.equal(again.as_task("second")(inputs), shared.as_task("second")(inputs))


def load_with_owner(owner: float, *, dtype: torch.dtype, source: Path) -> SharedNetwork:
    payload = first_task(CPG_LENET).payload()
    masks = payload["masks"] = {name: mask.to(dtype) for name, mask in payload["masks"].items()}
    masks["features.4"].view(-1)[7] = owner
    return SharedNetwork.from_payload(payload, build=CPG_LENET, source=source)


@pytest.mark.parametrize(
    ("owner", "dtype"),
    [
        (2, torch.uint8),
        (255, torch.uint8),
        (-1, torch.int64),
        (256, torch.int64),  # 0 as uint8
        (0.5, torch.float32),
        (float("nan"), torch.float32),
        (float("inf"), torch.float32),
    ],
)
def test_a_checkpoint_with_an_owner_beyond_its_tasks_is_refused(owner, dtype, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} is damaged: features\.4 .* owner {owner}, .* 0 .* 1 "):
        load_with_owner(owner, dtype=dtype, source=tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_owners_of_any_number_type_are_loaded_as_uint8(dtype, tmp_path):
    owner = load_with_owner(1, dtype=dtype, source=tmp_path).owners()["features.4"]
    assert owner.dtype == torch.uint8
    assert owner.flatten()[7] == 1


def test_shares_match_a_loop():
    shared = first_task(CPG_LENET)
    shared.begin_task("second", num_classes=4, width=2.0**0.5)
    learn(shared, steps=5, lr=0.02)
    prune(shared, 0.3)
    free = owned = earlier = picked = total = 0
    for layer in shared.layers().values():
        pairs = zip(layer.owner.flatten().tolist(), layer.piggymask.flatten().tolist(), strict=True)
        for owner, piggymask in pairs:
            total += 1
            free += owner == 0
            owned += owner == 2
            earlier += owner == 1
            picked += owner == 1 and piggymask > 0.005
    shares = shared.shares("second")
    assert shares.sparsity == pytest.approx(free / (free + owned))
    assert shares.task_ratio == pytest.approx(2.0 * owned / total)
    assert shares.zero_ratio == pytest.approx(2.0 * free / total)
    assert shares.shared_ratio == pytest.approx(picked / earlier)
    assert (shares.index, shares.width) == (2, 2.0**0.5)


def test_an_earlier_tasks_shares_and_owners_are_those_of_its_own_width():
    shared = first_task(CPG_LENET)
    before = shared.owners()
    total = sum(owner.numel() for owner in before.values())
    owned = sum((owner == 1).sum().item() for owner in before.values())
    assert shared.shares("first").zero_ratio == pytest.approx(1 - owned / total)
    shared.begin_task("second", num_classes=4, width=2.0**0.5)
    shares = shared.shares("first")
    assert (shares.index, shares.width, shares.sparsity, shares.zero_ratio) == (1, 1.0, 0.0, 0.0)
    assert shares.task_ratio == pytest.approx(owned / total)
    assert shares.shared_ratio == 0.0
    for name, owner in shared.owners_as("first").items():
        assert torch.equal(owner == 1, before[name] == 1)
        assert (owner[before[name] == 0] == 2).all()
    grown = sum(owner.numel() for owner in shared.owners().values())
    assert shared.owned_shares() == pytest.approx({"first": owned / grown, "second": 1 - owned / grown})


def test_a_task_without_weights_of_its_own_has_a_sparsity_of_zero():
    shared = SharedNetwork(build=CPG_LENET)
    shared.begin_task("first", num_classes=4)
    shared.begin_task("second", num_classes=4)
    shares = shared.shares("second")
    assert (shares.sparsity, shares.task_ratio, shares.zero_ratio, shares.shared_ratio) == (0, 0, 0, 1)


def test_a_network_refuses_a_task_whose_number_no_owner_can_hold(monkeypatch: pytest.MonkeyPatch):
    """Owners are uint8: the 256th task would own the free weights."""
    assert torch.iinfo(torch.uint8).max == ownership.MAX_TASKS
    shared = first_task(CPG_LENET)
    monkeypatch.setattr(ownership, "MAX_TASKS", 1)
    with pytest.raises(UserError, match="has learned 1 tasks"):
        shared.begin_task("second", num_classes=2)


def test_a_task_is_learned_once_and_a_network_never_shrinks():
    shared = first_task(CPG_LENET)
    with pytest.raises(UserError, match="already learned task first"):
        shared.begin_task("first", num_classes=4)
    with pytest.raises(UserError, match="cannot be made narrower"):
        shared.begin_task("second", num_classes=4, width=0.5)
    with pytest.raises(UserError, match="holds no task other: it holds first"):
        shared.as_task("other")


def test_piggymask_gradients_are_the_straight_through_estimate():
    torch.manual_seed(0)
    layer = SharableLinear(4, 3).double()
    earlier = torch.rand(3, 4) < 0.5
    layer.add_piggymask(torch.rand(3, 4, dtype=torch.float64) * 0.01, earlier=earlier)
    inputs = torch.randn(5, 4, dtype=torch.float64)
    upstream = torch.randn(5, 3, dtype=torch.float64)
    layer(inputs).backward(upstream)
    for row in range(3):
        for column in range(4):
            effective = sum(
                upstream[sample, row].item() * inputs[sample, column].item() for sample in range(5)
            )
            weight = layer.weight[row, column].item()
            seen = (not earlier[row, column]) or layer.piggymask[row, column] > 0.005
            mask_grad = effective * weight if earlier[row, column] else 0.0
            assert layer.weight.grad[row, column].item() == pytest.approx(effective if seen else 0.0)
            assert layer.piggymask.grad[row, column].item() == pytest.approx(mask_grad)


def test_plain_and_sharable_layers_are_the_same_function_without_masks():
    plain = lenet5(layers=PLAIN, batch_norm=True)
    sharable = CPG_LENET()
    sharable.load_state_dict(plain.state_dict())
    assert isinstance(plain.features[0], nn.Conv2d)
    inputs, _ = batch(3)
    assert torch.equal(plain.features(inputs), sharable.features(inputs))


@pytest.mark.parametrize("build", [CPG_LENET, PACKNET_LENET], ids=["cpg", "packnet"])
def test_freed_weights_that_are_not_zero_stay_invisible(build, tmp_path):
    """Published checkpoints keep the values of weights that their last cut freed."""
    shared = first_task(build)
    inputs, _ = batch(11)
    expected = shared.as_task("first")(inputs)
    payload = shared.payload()
    free = 0
    for name, owner in payload["masks"].items():
        payload["model_state_dict"][f"{name}.weight"][owner == 0] = 3.0
        free += (owner == 0).sum()
    assert free > 1000
    published = SharedNetwork.from_payload(payload, build=build, source=tmp_path)
    assert torch.equal(published.as_task("first")(inputs), expected)
    seen = published.as_task("first").state_dict()
    for name, owner in published.owners().items():
        assert (seen[f"{name}.weight"][owner == 0] == 0).all()


def test_looking_at_a_task_does_not_move_the_generators():
    """A run that evaluates earlier tasks must draw the same numbers as one that does not."""
    shared = first_task(CPG_LENET)
    shared.begin_task("second", num_classes=4, width=2.0**0.5)
    before = torch.get_rng_state()
    for task in ("first", "second"):
        shared.as_task(task)
        shared.owners_as(task)
        shared.shares(task)
    shared.payload()
    shared.owned_shares()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("only_dead_units", [False, True])
def test_freed_weights_are_drawn_again_where_asked_and_earlier_tasks_stay(only_dead_units: bool) -> None:
    torch.manual_seed(0)
    shared = SharedNetwork(build=CPG_LENET)
    shared.begin_task("first", num_classes=4)
    learn(shared, steps=2)
    released = {}
    for name, layer in shared.layers().items():
        released[name] = torch.rand(layer.weight.shape) < 0.5
        released[name][::3] = True  # whole units
    shared.release(released)
    inputs, _ = batch(99)
    before = shared.as_task("first")(inputs)
    shared.begin_task("second", num_classes=4)
    redraw_freed(shared, only_dead_units=only_dead_units)

    drawn = 0
    for name, layer in shared.layers().items():
        for unit, freed in enumerate(released[name]):
            expected = freed if not only_dead_units or freed.all() else torch.zeros_like(freed)
            # A weight drawn from a continuous distribution is 0 with probability 0.
            assert torch.equal(layer.weight[unit] != 0, expected | (~freed & (layer.weight[unit] != 0)))
            drawn += int(expected.sum())
    assert drawn > 1000
    assert torch.equal(shared.as_task("first")(inputs), before)


# Checkpoints


def two_tasks() -> SharedNetwork:
    """An untrained network of two tasks, half of whose weights the first one owns."""
    torch.manual_seed(0)
    shared = SharedNetwork(build=CPG_LENET)
    shared.begin_task("first", num_classes=4)
    shared.release({name: torch.rand(owner.shape) < 0.5 for name, owner in shared.owners().items()})
    shared.begin_task("second", num_classes=3)
    return shared


def test_a_payload_has_the_published_layout():
    payload = two_tasks().payload()
    layers = {"features.0", "features.4", "features.9", "features.11"}
    norms = {"features.1", "features.5"}
    assert payload["masks"].keys() == layers
    assert payload["dataset_history"] == ["first", "second"]
    assert payload["dataset2num_classes"] == {"first": 4, "second": 3}
    for name, picking in (("first", set()), ("second", layers)):
        info = payload["shared_layer_info"][name]
        assert {group: {*info[group]} for group in info if isinstance(info[group], dict)} == {
            "bias": {"features.9", "features.11"},
            "bn_layer_running_mean": norms,
            "bn_layer_running_var": norms,
            "bn_layer_weight": norms,
            "bn_layer_bias": norms,
            "prelu_layer_weight": set(),
            "private": {f"{norm}.num_batches_tracked" for norm in norms},
            "piggymask": picking,
        }
        assert (info["network_width_multiplier"], info["modality"]) == (1.0, "image")


def test_a_published_payload_is_read(tmp_path):
    """It names biases by kind of layer, repeats the active head, and lacks whatever was added later."""
    shared = two_tasks()
    payload = shared.payload()
    del payload["arrivals"]
    payload["model_state_dict"]["classifier.weight"] = torch.zeros(3, 84)
    for info in payload["shared_layer_info"].values():
        info["fc_bias"] = info.pop("bias")
        info["conv_bias"] = {}
        for later in ("private", "modality", "network_width_multiplier"):
            del info[later]
    read = SharedNetwork.from_payload(payload, build=CPG_LENET, source=tmp_path)
    inputs, _ = batch(3)
    for task in ("first", "second"):
        assert torch.equal(read.as_task(task)(inputs), shared.as_task(task)(inputs))
    assert [(record.width, record.modality) for record in read.tasks] == [(1.0, "image")] * 2
    assert read.arrivals == {}


def damage(payload: dict, part: str, name: str, value: Tensor | None) -> None:
    """Replace an entry, or remove it if `value` is None. `part` is a path of keys."""
    for key in part.split("/"):
        payload = payload[key]
    if value is None:
        del payload[name]
    else:
        payload[name] = value


WEIGHTS, MASKS = "model_state_dict", "masks"
BIASES, PIGGYMASKS = "shared_layer_info/first/bias", "shared_layer_info/first/piggymask"
FIVE = torch.zeros(5)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        (WEIGHTS, "classifiers.1.weight", None, r"no head for task second \(classifiers\.1\.weight\)$"),
        (WEIGHTS, "classifiers.1.weight", torch.zeros(5, 84), "second has 5 classes, .* says 3$"),
        (WEIGHTS, "features.9.bias", None, "another architecture: missing weights features.9.bias$"),
        (WEIGHTS, "features.8.bias", FIVE, "another architecture: unknown weights features.8.bias$"),
        (WEIGHTS, "features.9.bias", FIVE, r"features.9.bias has the shape \(5,\), expected \(120,\)$"),
        ("dataset2num_classes", "first", None, "lists task first but lacks its entry$"),
        ("shared_layer_info", "second", None, "lists task second but lacks its entry$"),
        (MASKS, "features.9", None, "another architecture: missing masks features.9$"),
        (MASKS, "features.8", FIVE, "another architecture: unknown masks features.8$"),
        (MASKS, "features.9", FIVE, r"width: features.9 has the shape \(5,\), expected \(120, 400\)$"),
        (BIASES, "features.9", None, "task first: missing tensors features.9.bias$"),
        (BIASES, "features.8", FIVE, "task first: unknown tensors features.8.bias$"),
        (BIASES, "features.9", FIVE, r"features.9.bias of task first has .*\(5,\), expected \(120,\)$"),
        (PIGGYMASKS, "features.9", FIVE, r"mask features.9 of task first has the shape \(5,\)$"),
        (PIGGYMASKS, "features.8", FIVE, r"mask features.8 of task first has the shape \(5,\)$"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_name(part, name, value, message, tmp_path):
    payload = two_tasks().payload()
    damage(payload, part, name, value)
    with pytest.raises(UserError, match=message) as refused:
        SharedNetwork.from_payload(payload, build=CPG_LENET, source=tmp_path)
    assert str(refused.value).startswith(f"{tmp_path} ")


def test_a_message_names_everything_that_does_not_fit(tmp_path):
    payload = two_tasks().payload()
    for name in ("features.9", "features.4"):
        payload["masks"][name[:-1] + "8" + name[-1]] = payload["masks"].pop(name)
    with pytest.raises(
        UserError, match=r"missing masks features\.4, features\.9; unknown masks features\.84, features\.89$"
    ):
        SharedNetwork.from_payload(payload, build=CPG_LENET, source=tmp_path)


def test_a_payload_without_tasks_is_refused(tmp_path):
    payload = SharedNetwork(build=CPG_LENET).payload()
    with pytest.raises(UserError, match="holds no task"):
        SharedNetwork.from_payload(payload, build=CPG_LENET, source=tmp_path)


# Life of a network


def test_a_network_without_tasks_says_so():
    with pytest.raises(UserError, match=r"holds no task first: it holds none$"):
        SharedNetwork(build=CPG_LENET).index_of("first")


def test_a_modality_that_the_network_cannot_read_is_refused():
    with pytest.raises(UserError, match="task first has text inputs, and the network reads image only"):
        SharedNetwork(build=CPG_LENET).begin_task("first", num_classes=4, modality="text")


def test_moving_a_network_moves_everything():
    shared = two_tasks()
    shared.arrivals = {"third": {"features.9.bias": torch.zeros(120)}}
    shared.snapshot()
    assert shared.to(torch.device("meta")) is shared
    held = [*shared.network.parameters(), *shared.network.buffers(), *shared.arrivals["third"].values()]
    for record in shared.tasks:
        held += [*record.private.values(), *record.piggymasks.values()]
    assert {value.device.type for value in held} == {"meta"}


def test_arrived_tensors_replace_the_private_ones_once():
    shared = two_tasks()
    arrived = torch.randn(120)
    shared.arrivals = {"third": {"features.9.bias": arrived}, "other": {}}
    shared.begin_task("third", num_classes=2)
    assert torch.equal(shared.network.features[9].bias, arrived)
    assert shared.arrivals == {"other": {}}
    assert not torch.equal(shared.as_task("second").features[9].bias, arrived)


def test_a_begun_task_fixes_the_choice_of_the_one_before():
    shared = two_tasks()
    with torch.no_grad():
        for piggymask in piggymasks_of(shared):
            piggymask.copy_(torch.rand_like(piggymask) * 0.01)
    picked = {name: layer.piggymask > 0.005 for name, layer in shared.layers().items()}
    shared.begin_task("third", num_classes=2)
    assert {mask.dtype for mask in shared.tasks[1].piggymasks.values()} == {torch.bool}
    assert all(torch.equal(mask, picked[name]) for name, mask in shared.tasks[1].piggymasks.items())
    assert all((piggymask == 0.01).all() for piggymask in piggymasks_of(shared))
    for layer in shared.layers().values():
        assert torch.equal(layer.earlier, (layer.owner == 1) | (layer.owner == 2))


def test_counts_of_owned_weights_and_masks_follow_the_owners():
    shared = two_tasks()
    method = OwnedTraining(shared=shared, weight_decay=0.0)
    method.before_task()
    assert method.owned_count == sum((owner == 2).sum().item() for owner in shared.owners().values())
    released = {name: owner == 2 for name, owner in shared.owners().items()}
    shared.release(released)
    for name, layer in shared.layers().items():
        assert (layer.owner[released[name]] == 0).all() and (layer.weight[released[name]] == 0).all()
    method.before_task()
    assert method.owned_count == 0
