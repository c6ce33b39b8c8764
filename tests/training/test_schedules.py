"""Learning rates by epoch."""

import pytest
import torch

from training.schedules import PlateauSchedule


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
