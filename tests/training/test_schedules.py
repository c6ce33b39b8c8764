"""Learning rates by epoch."""

import math

import pytest
import torch

from training.schedules import PlateauSchedule, StepSchedule


def test_plateau_schedule():
    schedule = PlateauSchedule(0.09, factor=1 / 3, patience=2, floor=0.02, stop_after=2)
    rates = []
    for metric in (5.0, 4.0, 4.0, 4.5, 4.0, 3.0, 9.0, 9.0, 9.0, 9.0):
        rates.append(round(schedule.at(1), 6))
        schedule.observe(metric)
        if schedule.finished:
            break
    # Three epochs do not improve on 4.0: the rate falls. Three more do not improve on 3.0: it falls to the
    # floor, where two such epochs end training.
    assert rates == [0.09] * 5 + [0.03] * 4 + [0.02]
    schedule.observe(9.0)
    assert schedule.finished


def test_a_loss_that_barely_falls_does_not_keep_the_rate_high():
    """Only a relative decrease of more than 1e-4 is an improvement, as in torch's ReduceLROnPlateau."""
    ours = PlateauSchedule(0.25)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.25)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=1 / 3, patience=4, min_lr=1e-3)
    losses = [10.0 - 5e-6 * epoch for epoch in range(12)] + [9.0] * 7 + [9.0 * (1 - 2e-4)] * 5
    for loss in losses:
        ours.observe(loss)
        reference.step(loss)
        assert ours.at(1) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.at(1) < 0.25


def test_plateau_schedule_resumes_from_its_state():
    one, other = (PlateauSchedule(0.25) for _ in range(2))
    for metric in (1.0, 2.0, 2.0, 2.0):
        one.observe(metric)
    other.load_state_dict(one.state_dict())
    for _ in range(40):
        one.observe(2.0)
        other.observe(2.0)
        assert (one.at(1), one.finished) == (other.at(1), other.finished)
    assert one.finished and one.at(1) == 1e-3


def test_a_step_schedule_without_drops_is_constant_and_never_ends_training():
    schedule = StepSchedule(0.01)
    assert [schedule.at(epoch) for epoch in (1, 2, 100)] == [0.01] * 3
    assert not schedule.finished


def test_a_drop_applies_from_the_next_epoch_on_and_drops_multiply():
    schedule = StepSchedule(1.0, drops={2: 0.1, 4: 0.5})
    rates = [schedule.at(epoch) for epoch in range(1, 7)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.05, 0.05])


def test_the_defaults_are_those_of_the_published_spg():
    """Factor 1/3 after more than 4 epochs without improvement, down to 1e-3; 5 more end training."""
    schedule = PlateauSchedule(0.25)
    rates = []
    while not schedule.finished:
        rates.append(schedule.at(len(rates) + 1))
        schedule.observe(1.0)
    falling = [0.25 / 3**number for number in range(1, 6)]
    # The first epoch improves on no loss at all.
    expected = [0.25] * 6 + [rate for rate in falling for _ in range(5)] + [1e-3] * 5
    assert rates == pytest.approx(expected)


def test_a_rate_that_starts_below_the_floor_stays():
    schedule = PlateauSchedule(1e-4, stop_after=2)
    for metric in (1.0, 1.0, 1.0):
        assert schedule.at(1) == 1e-4 and not schedule.finished
        schedule.observe(metric)
    assert schedule.finished


def test_a_diverged_loss_lowers_the_rate_at_once_and_ends_training_at_the_floor():
    schedule = PlateauSchedule(0.3, floor=0.05, patience=9)
    rates = []
    for _ in range(3):
        assert not schedule.finished
        schedule.observe(math.inf)
        rates.append(schedule.at(1))
    assert rates == pytest.approx([0.1, 0.05, 0.05])
    assert schedule.finished
