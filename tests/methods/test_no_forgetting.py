"""No forgetting, through the scripts: a backbone's logits stay bit-identical."""

import torch

import models
from data.loading import evaluation_batches, load_task
from data.tables import load_table
from methods.ownership import SharedNetwork
from tests.helpers import Fleet, load


def logits(path, task: str, fleet: Fleet) -> torch.Tensor:
    table = load_table("digits", data_root=fleet.data)
    data = load_task(
        table, table.task(task), data_root=fleet.data, protocol="published", seed=1, device="cpu"
    )
    shared = SharedNetwork.from_payload(load(path), build=models.ARCHITECTURES["lenet5"], source=path)
    network = shared.as_task(task)
    batches = evaluation_batches(data.test, data.to_inputs, batch_size=100)
    with torch.no_grad():
        return torch.cat([network(images) for images, _ in batches])


def test_a_backbones_logits_do_not_change_when_a_target_is_learned_on_it_at_any_width(trained_fleet: Fleet):
    before = logits(trained_fleet.chosen_checkpoint("zero_one"), "zero_one", trained_fleet)
    for width in ("1.0", "1.5", "2.0"):
        path = trained_fleet.target_folder() / f"width-{width}" / "checkpoint-4.pth.tar"
        assert torch.equal(logits(path, "zero_one", trained_fleet), before)
        assert not torch.equal(logits(path, "four_five", trained_fleet)[:3], before[:3])
