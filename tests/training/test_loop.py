"""The training loop: which state a run ends with, and what happens when its loss is not finite."""

import math
from types import SimpleNamespace

import torch
from torch import nn

from training.loop import Compute, Learner, Observer, fit
from training.method import Method
from training.schedules import PlateauSchedule


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
    assert "returning to the best state so far" in caplog.text
    # The epoch after the NaN continued from the best state, that of epoch 2.
    assert network.weight.equal(states[5]) and states[4].isfinite().all()


def test_a_nan_in_the_first_epoch_restores_the_initial_state():
    schedule = PlateauSchedule(0.9, floor=0.9, stop_after=3)
    network, progress, states = run_fit(BreaksDown({1}), schedule, [math.nan])
    assert progress.epoch == 1
    assert network.weight.equal(states[0])
