"""The training loop: means, final states, losses that are not finite, resuming and clipping."""

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.loop import (
    Compute,
    Diverged,
    Learner,
    Observer,
    Progress,
    evaluate,
    evaluation_sums,
    final_row,
    fit,
    train_epoch,
    train_step,
)
from training.method import Method
from training.schedules import PlateauSchedule, StepSchedule


class BreaksDown(Method):
    """A method whose loss is NaN in the given epochs."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.rates = []

    def before_epoch(self, epoch):
        self.epoch = epoch

    def loss(self, logits, labels):
        return super().loss(logits, labels) * (math.nan if self.epoch in self.epochs else 1.0)


def run_fit(method, schedule, losses, *, epochs=20):
    """Train a tiny network with the given validation losses; return it, its progress and its states."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    batch = (torch.randn(8, 4), torch.randint(0, 2, (8,)))
    states = [network.weight.detach().clone()]

    class Scripted(Observer):
        def metrics(self):
            states.append(network.weight.detach().clone())
            return {"val_loss": losses[len(states) - 2]}

    learner = Learner(
        method=method,
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": schedule},
        epochs=epochs,
        monitor="val_loss",
    )
    batches = SimpleNamespace(epoch=lambda generator: iter([batch]), validation=lambda: iter([batch]))
    progress = fit(
        network,
        learner=learner,
        batches=batches,
        compute=Compute(device=torch.device("cpu")),
        seed=0,
        observer=Scripted(),
    )
    return network, progress, states


def test_the_best_state_is_restored_and_training_stops():
    schedule = PlateauSchedule(0.1, patience=1, floor=0.05, stop_after=2)
    network, progress, states = run_fit(Method(), schedule, [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    # Two bad epochs lower the rate to the floor; two more end training.
    assert progress.epoch == 6
    assert network.weight.equal(states[2])
    assert progress.best is None


def test_a_nan_restores_the_best_state_and_lowers_the_rate(caplog):
    schedule = PlateauSchedule(0.9, patience=9, floor=0.1, stop_after=1)
    network, progress, states = run_fit(BreaksDown({3}), schedule, [3.0, 2.0, math.nan, 2.5, 1.0], epochs=5)
    assert [round(row["lr"], 6) for row in progress.history] == [0.9, 0.9, 0.9, 0.3, 0.3]
    assert progress.history[2]["loss"] is None and progress.history[2]["val_loss"] is None
    assert states[3].isnan().all() and network.weight.isfinite().all()
    assert caplog.messages == [
        ": the loss is nan in epoch 3 (val_loss: nan): returning to the best state so far and continuing "
        "with the next lower learning rate"
    ]
    # The epoch after the NaN continued from the best state, that of epoch 2.
    assert network.weight.equal(states[5]) and states[4].isfinite().all()


def test_a_nan_in_the_first_epoch_restores_the_initial_state():
    schedule = PlateauSchedule(0.9, floor=0.9, stop_after=3)
    network, progress, states = run_fit(BreaksDown({1}), schedule, [math.nan])
    assert progress.epoch == 1
    assert network.weight.equal(states[0])


# Means over batches of different sizes


def unequal_batches():
    """Seven samples in batches of five and two."""
    generator = torch.Generator().manual_seed(2)
    inputs = 3 * torch.randn(7, 4, generator=generator)
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 0])
    return [(inputs[:5], labels[:5]), (inputs[5:], labels[5:])]


def loop_evaluation(network):
    """Mean loss and accuracy over samples, one at a time; and the mean of the batches' mean losses."""
    losses, hits = [], []
    for inputs, labels in unequal_batches():
        losses.append([])
        for values, label in zip(inputs, labels, strict=True):
            logits = network(values).tolist()
            losses[-1].append(math.log(sum(math.exp(logit) for logit in logits)) - logits[label])
            hits.append(logits[label] == max(logits))
    together = [loss for batch in losses for loss in batch]
    by_batch = sum(sum(batch) / len(batch) for batch in losses) / len(losses)
    return sum(together) / 7, sum(hits) / 7, by_batch


def test_losses_and_accuracies_are_means_over_samples():
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    loss, accuracy, by_batch = loop_evaluation(network)
    assert abs(loss - by_batch) > 0.05, "the batches must differ"
    learner = Learner(
        method=Method(),
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": StepSchedule(0.0)},
        epochs=1,
    )
    compute = Compute(device=torch.device("cpu"))
    trained = train_epoch(network, learner=learner, batches=unequal_batches(), compute=compute)
    assert trained == pytest.approx((loss, accuracy), rel=1e-5)
    found = evaluate(network, unequal_batches(), autocast=nullcontext())
    assert (found.loss, found.accuracy, found.count) == pytest.approx((loss, accuracy, 7), rel=1e-5)


def test_evaluation_builds_no_graph_and_restores_the_mode():
    network = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.9))
    for training in (True, False):
        network.train(training)
        first, again = (evaluation_sums(network, unequal_batches(), autocast=nullcontext()) for _ in range(2))
        assert not first[0].requires_grad
        assert torch.equal(first[0], again[0]), "dropout is off"
        assert network.training == training


def test_without_a_monitored_metric_the_last_state_is_kept():
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    learner = Learner(
        method=Method(),
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": StepSchedule(0.1, drops={2: 0.5})},
        epochs=4,
    )
    start = network.weight.detach().clone()
    progress = fit(
        network,
        learner=learner,
        batches=SimpleNamespace(epoch=lambda _: iter(unequal_batches()), validation=unequal_batches),
        compute=Compute(device=torch.device("cpu")),
        seed=0,
    )
    assert [row["lr"] for row in progress.history] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert (progress.epoch, progress.best, progress.best_epoch, progress.method) == (4, None, 0, {})
    (columns,) = {tuple(row) for row in progress.history}
    assert columns == ("epoch", "loss", "accuracy", "lr", "val_loss", "val_accuracy")
    found = evaluate(network, unequal_batches(), autocast=nullcontext())
    assert found.loss == progress.history[-1]["val_loss"] < progress.history[0]["val_loss"]
    assert not network.weight.equal(start)


# Resuming


class Recorder(Observer):
    """Sets the validation losses, and keeps the progress after every epoch as a resume file does."""

    def __init__(self, losses, *, progress=None):
        self.losses = losses
        self.done = 0 if progress is None else progress.epoch
        self.saved = []

    def metrics(self):
        self.done += 1
        return {"val_loss": self.losses[self.done - 1]}

    def after_epoch(self, progress):
        self.saved.append(copy.deepcopy(progress))


def fit_with(losses, *, progress=None):
    """Train with a new network and schedule; return the final progress and those after each epoch."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    learner = Learner(
        method=Method(),
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": PlateauSchedule(0.9, patience=1, floor=0.2, stop_after=2)},
        epochs=len(losses),
        monitor="val_loss",
    )
    recorder = Recorder(losses, progress=progress)
    final = fit(
        network,
        learner=learner,
        batches=SimpleNamespace(epoch=lambda _: iter(unequal_batches()), validation=unequal_batches),
        compute=Compute(device=torch.device("cpu")),
        seed=0,
        progress=progress,
        observer=recorder,
    )
    return final, recorder.saved


def test_a_resumed_run_keeps_its_schedule():
    losses = [3.0, 1.0, *[2.0] * 12]
    straight, saved = fit_with(losses)
    rates = [row["lr"] for row in straight.history]
    assert rates == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.3, 0.3, 0.2, 0.2])
    for progress in saved:
        resumed, _ = fit_with(losses, progress=copy.deepcopy(progress))
        assert [row["lr"] for row in resumed.history] == rates, f"resumed after epoch {progress.epoch}"


# Clipping


class OneRow(Method):
    """Removes the gradient of the weight's first row, as that of another task's weights."""

    def __init__(self, network):
        self.network = network

    def after_backward(self):
        self.network.weight.grad[0] = 0.0


def test_clipping_measures_the_gradients_that_the_method_leaves():
    """Those of other tasks' weights must not shrink the step."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2, bias=False)
    for clip_grad_norm, expected in ((0.01, 0.01), (1e6, None)):
        train_step(
            network=network,
            method=OneRow(network),
            optimizers=[torch.optim.SGD(network.parameters(), lr=0.0)],
            inputs=unequal_batches()[0][0],
            labels=unequal_batches()[0][1],
            autocast=nullcontext(),
            clip_grad_norm=clip_grad_norm,
        )
        assert network.weight.grad[0].eq(0).all()
        if expected is None:
            assert network.weight.grad.norm() > 0.01, "a norm below the limit stays"
        else:
            assert network.weight.grad.norm().item() == pytest.approx(expected, rel=1e-3)


# The row that counts


def test_the_final_row_is_the_best_finite_one_of_the_monitored_metric_or_the_last():
    losses = (3.0, None, 1.0, 2.0, 1.0)
    history = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses, 1)]
    how = {"title": "task", "remedy": "lower --lr"}
    assert final_row(Progress(history=history), monitor="val_loss", **how)["epoch"] == 3
    assert final_row(Progress(history=history), monitor=None, **how)["epoch"] == 5
    with pytest.raises(Diverged, match=r"^task: the loss was not finite in any epoch: lower --lr$"):
        final_row(Progress(history=history[1:2]), monitor="val_loss", **how)


def test_of_equal_losses_the_first_epoch_is_the_best():
    schedule = PlateauSchedule(0.1, patience=9)
    network, progress, states = run_fit(Method(), schedule, [3.0, 1.0, 1.0], epochs=3)
    assert (progress.best_epoch, progress.best_figure) == (2, 1.0)
    assert network.weight.equal(states[2]) and not network.weight.equal(states[3])


@pytest.mark.parametrize("broken", [1, 3])
def test_a_loss_that_is_not_finite_ends_training_if_no_metric_is_monitored(broken):
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    learner = Learner(
        method=BreaksDown({broken}),
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": StepSchedule(0.1)},
        epochs=4,
    )
    with pytest.raises(Diverged, match=rf"^task: loss is nan in epoch {broken}: lower --lr$"):
        fit(
            network,
            learner=learner,
            batches=SimpleNamespace(epoch=lambda _: iter(unequal_batches()), validation=unequal_batches),
            compute=Compute(device=torch.device("cpu")),
            seed=0,
            title="task",
            remedy="lower --lr",
        )


def test_the_message_of_a_diverged_loss_has_a_remedy_of_its_own():
    network = nn.Linear(4, 2)
    learner = Learner(
        method=BreaksDown({1}),
        optimizers={"weights": torch.optim.SGD(network.parameters(), lr=0.0)},
        schedules={"weights": StepSchedule(0.1)},
        epochs=1,
    )
    with pytest.raises(Diverged, match=r"^: loss is nan in epoch 1: lower the learning rate$"):
        fit(
            network,
            learner=learner,
            batches=SimpleNamespace(epoch=lambda _: iter(unequal_batches()), validation=unequal_batches),
            compute=Compute(device=torch.device("cpu")),
            seed=0,
        )


# Steps


def test_momentum_does_not_move_parameters_that_a_step_does_not_use():
    """Heads of other tasks, for example."""
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.1, momentum=0.9)
    ((inputs, labels), *_) = unequal_batches()
    how = {"method": Method(), "optimizers": [optimizer], "inputs": inputs, "labels": labels}
    train_step(network=heads[0], autocast=nullcontext(), **how)
    first = heads[0].weight.detach().clone()
    train_step(network=heads[1], autocast=nullcontext(), **how)
    assert heads[0].weight.equal(first)


def test_networks_run_in_full_precision_by_default():
    assert Compute(device=torch.device("cpu")).precision == "fp32"


def test_a_run_of_no_epochs_makes_no_progress():
    network = nn.Linear(4, 2)
    learner = Learner(method=Method(), optimizers={}, schedules={}, epochs=0)
    compute = Compute(device=torch.device("cpu"))
    progress = fit(network, learner=learner, batches=SimpleNamespace(), compute=compute, seed=0)
    assert vars(progress) == {
        **{"epoch": 0, "history": [], "generator": None, "random": {}},
        **{"optimizers": {}, "method": {}, "schedules": {}},
        **{"best": None, "best_figure": math.inf, "best_epoch": 0},
    }
