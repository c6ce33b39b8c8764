"""Batches never wait for the device, except that texts' lengths are read once per epoch, at its start."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.loading import Batches, Samples, TaskData
from data.tables import Table, load_table
from data.text_encoders import HashEncoder
from tests.cuda.machines import Machine

COUNT = 100  # more than the batches that are selected at once


def images(machine: Machine, root: Path) -> TaskData:
    table = load_table("cifar100", data_root=root)
    stored = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    return task_data(machine, table, "image", stored, mean=torch.zeros(3), std=torch.ones(3))


def texts(machine: Machine, root: Path) -> TaskData:
    table = load_table("cifar_newsgroups", data_root=root)
    stored = torch.randint(1, 100, (COUNT, 20), dtype=torch.int32)
    encoder = HashEncoder().to(machine.device)
    encoder.embed(stored[:1].to(machine.device))  # copies the table of embeddings to the device
    return task_data(machine, table, "text", stored, mean=torch.zeros(0), std=torch.zeros(0), encoder=encoder)


def task_data(
    machine: Machine,
    table: Table,
    modality: str,
    stored: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    encoder: HashEncoder | None = None,
) -> TaskData:
    samples = Samples(stored.to(machine.device), torch.zeros(COUNT, dtype=torch.int64).to(machine.device))
    return TaskData(
        table=table,
        task=next(task for task in table.tasks if task.modality == modality),
        train=samples,
        validation=samples,
        test=samples,
        mean=mean.to(machine.device),
        std=std.to(machine.device),
        fingerprint="",
        protocol="published",
        encoder=encoder,
    )


@pytest.mark.parametrize(("make", "reads"), [(images, 0), (texts, 1)])
def test_an_epoch_and_an_evaluation(run_check, make, reads: int, tmp_path: Path) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            data = make(machine, tmp_path)
            batches = Batches(data, batch_size=4, val_batch_size=30)
            batches.epoch(torch.Generator().manual_seed(1))  # pads the images
            drawn = batches.epoch(torch.Generator().manual_seed(1))
        with machine.steps():
            found = list(drawn)
        with machine.steps(reads=reads):
            found += list(batches.validation())
        assert len(found) == COUNT // 4 + -(-COUNT // 30)
        for inputs, labels in found:
            assert inputs.device.type == labels.device.type == machine.device.type
            assert inputs.dtype == torch.float32

    run_check(check, backward=False)
