"""Experience replay's buffer and loss, against slow loops."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.approaches.base import Settings, TaskPasses
from methods.approaches.er import ER, EROptions
from models.alexnet import alexnet
from models.layers import PLAIN
from training.method import Method

SIZES = (3, 2, 4)


def make(*, buffer: int, batch: int = 5) -> ER:
    torch.manual_seed(0)
    return ER(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        total=3,
        settings=Settings(),
        options=EROptions(er_buffer=buffer, er_batch=batch),
    )


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)


def to_inputs(stored: Tensor) -> Tensor:
    return stored.float() / 255


def method_of(er: ER, stored: tuple[Tensor, Tensor]) -> Method:
    return er.method(
        TaskPasses(batches=lambda size: (), autocast=nullcontext(), stored=stored, to_inputs=to_inputs)
    )


def learned(er: ER, *, tasks: int) -> None:
    """Begin and end the first tasks, with 20 samples each."""
    for number in range(tasks):
        er.begin_task(f"task_{number}", SIZES[number])
        method_of(er, (pixels(20), torch.arange(20) % SIZES[number])).after_task()


def test_the_buffer_keeps_raw_samples_with_their_labels_and_tasks() -> None:
    er = make(buffer=500)
    er.begin_task("first", 3)
    images, labels = pixels(7), torch.arange(7) % 3
    method_of(er, (images, labels)).after_task()
    assert er.buffer.inputs.equal(images) and er.buffer.labels.equal(labels)
    assert er.buffer.inputs.dtype == torch.uint8 and not er.buffer.tasks.any()
    er.begin_task("second", 2)
    method_of(er, (pixels(4), torch.arange(4) % 2)).after_task()
    assert er.buffer.tasks.tolist() == [0] * 7 + [1] * 4


def test_the_bytes_of_the_buffer_are_counted() -> None:
    er = make(buffer=10)
    er.begin_task("first", 3)
    before = er.stored_bytes()
    method_of(er, (pixels(20), torch.arange(20) % 3)).after_task()
    assert er.stored_bytes() - before == 10 * (3 * 16 * 16 + 3 * 8)


def test_every_sample_offered_is_kept_with_equal_probability() -> None:
    """As in Vitter's algorithm, simulated sample by sample."""
    kept, expected = torch.zeros(3), torch.zeros(3)
    for _ in range(400):
        er = make(buffer=9)
        torch.manual_seed(int(kept.sum()) + 1)
        for number in range(3):
            er.begin_task(f"task_{number}", 2)
            er.remember(
                torch.zeros(10 * (number + 1), 1, dtype=torch.uint8),
                torch.zeros(10 * (number + 1), dtype=torch.int64),
            )
        assert len(er.buffer) == 9
        kept += er.buffer.tasks.bincount(minlength=3)
        slots: list[int] = []
        for seen, task in enumerate([0] * 10 + [1] * 20 + [2] * 30):
            place = int(torch.randint(0, seen + 1, ()))
            if len(slots) < 9:
                slots.append(task)
            elif place < 9:
                slots[place] = task
        expected += torch.tensor(slots).bincount(minlength=3)
    for counts in (kept, expected):
        assert (counts / counts.sum()).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def test_the_loss_is_the_mean_over_the_union_each_sample_among_its_own_tasks_classes() -> None:
    er = make(buffer=30, batch=5)
    learned(er, tasks=2)
    er.begin_task("newest", SIZES[2])
    images, labels = pixels(8), torch.arange(8) % SIZES[2]
    logits = er.network(to_inputs(images))
    method = method_of(er, (images, labels))
    torch.manual_seed(5)
    loss = method.loss(logits, labels)
    torch.manual_seed(5)
    rows = torch.randperm(30)[:5]
    assert len(rows.unique()) == 5
    total = sum(cross_entropy(logit, label) for logit, label in zip(logits, labels, strict=True))
    for row in rows.tolist():
        features = er.network.features(to_inputs(er.buffer.inputs[row : row + 1]))
        head = er.network.classifiers[int(er.buffer.tasks[row])]
        total = total + cross_entropy(head(features)[0], er.buffer.labels[row])
    torch.testing.assert_close(loss, total / 13)
    loss.backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in list(er.network.classifiers)[-1:])


def test_the_first_task_and_a_small_buffer() -> None:
    er = make(buffer=3, batch=64)
    er.begin_task("first", 3)
    images, labels = pixels(8), torch.arange(8) % 3
    logits = er.network(to_inputs(images))
    assert method_of(er, (images, labels)).loss(logits, labels).equal(cross_entropy(logits, labels))
    method_of(er, (images, labels)).after_task()
    er.begin_task("second", 2)
    loss = method_of(er, (images, labels % 2)).loss(er.network(to_inputs(images)), labels % 2)
    assert loss.isfinite()
