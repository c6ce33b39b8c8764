"""The choice of a pruning ratio notices that stage 2-1 was redone, and names a baseline at chance."""

import json
import re

import pytest
import torch

from pipeline.cpg import warn_at_chance
from tests.helpers import RATIOS, Fleet, load, refusal, same
from tools import select_pruning_ratio as select_script
from training.checkpoints import fingerprint, save_checkpoint
from utils.paths import record_file

# Accepts the highest ratio, whose network no later one was pruned from.
HIGHEST = ("--allow_acc_loss", "1.0")


def test_a_redone_stage_with_equal_accuracies_is_not_taken_for_the_old_one(fleet: Fleet) -> None:
    fleet.select("1", *HIGHEST, "--overwrite")
    chosen = fleet.chosen_checkpoint("zero_one")
    assert load(chosen)["selection"]["ratio"] == max(RATIOS)
    fleet.select("1", *HIGHEST)

    path = fleet.pruned_checkpoint("zero_one", max(RATIOS))
    redone = load(path)
    redone["model_state_dict"]["features.11.bias"] += 1e-4
    save_checkpoint(path, redone)
    record = record_file(fleet.paths.pruned("digits", "zero_one"))
    assert json.loads(record.read_text())[str(max(RATIOS))] == load(chosen)["selection"]["accuracy"]

    message = refusal(select_script.main, fleet.select_flags("1", *HIGHEST))
    assert str(chosen) in message and "network (" in message and "accuracy (" not in message
    fleet.select("1", *HIGHEST, "--overwrite")
    assert same(load(chosen)["model_state_dict"], redone["model_state_dict"])
    assert load(chosen)["selection"]["network"] == fingerprint(redone)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1] * 2, "4 samples are too few .*: .*; give the task more images"),
        ([0, 1] * 6, r"is not above chance \(12 samples\): .*; train the scratch network for longer"),
    ],
)
def test_a_baseline_at_chance_is_warned_of_with_a_remedy_that_can_help(
    labels: list[int], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_at_chance(0.5, task="fish", labels=torch.tensor(labels))
    (message,) = caplog.messages
    assert re.search(expected, message)
