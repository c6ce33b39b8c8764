"""CPG's schedules for every number of epochs, against a table written by hand."""

import pytest

from methods.cpg import freeze_epoch, piggymask_schedule, weight_schedule

# epochs: last epoch at the full rate, last one before the second drop, last one that trains piggymasks
TABLE = {
    1: (1, 1, 1),
    2: (1, 1, 1),
    3: (1, 2, 2),
    4: (2, 3, 2),
    5: (2, 4, 3),
    6: (3, 4, 4),
    7: (3, 5, 4),
    8: (4, 6, 5),
    9: (4, 7, 6),
    10: (5, 8, 7),
    20: (10, 16, 14),
    100: (50, 80, 70),
}


@pytest.mark.parametrize("epochs", TABLE)
def test_rates_and_the_freeze_follow_the_table(epochs: int) -> None:
    first, second, frozen = TABLE[epochs]
    weights, piggymasks = weight_schedule(lr=0.01, epochs=epochs), piggymask_schedule(lr=1e-4, epochs=epochs)
    for epoch in range(1, epochs + 1):
        factor = 1.0 if epoch <= first else 0.1 if epoch <= second else 0.1 * 0.1
        assert weights.at(epoch) == 0.01 * factor
        assert piggymasks.at(epoch) == (1e-4 if epoch <= first else 1e-4 * 0.2)
    assert freeze_epoch(epochs) == frozen


def test_one_epoch_trains_at_the_full_rate_with_trainable_piggymasks() -> None:
    assert weight_schedule(lr=0.01, epochs=1).at(1) == 0.01
    assert piggymask_schedule(lr=1e-4, epochs=1).at(1) == 1e-4
    assert freeze_epoch(1) >= 1


def test_both_drops_come_at_once_in_the_second_of_two_epochs() -> None:
    assert [weight_schedule(lr=1.0, epochs=2).at(epoch) for epoch in (1, 2)] == pytest.approx([1.0, 0.01])
