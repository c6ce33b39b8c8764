"""Sequences: splits, order, totals."""

from dataclasses import replace

import pytest
import torch

from data import sequences
from data.prepare import main as prepare
from data.sequences import joint_task, known_sequences, load_sequence, load_task, stratified
from utils.errors import UserError

EXPECTED = {
    # tasks, classes, train/val/test per class, channels, size, dropouts
    "cifar100_10": (10, 10, (450, 50, 100), (0.3135, 0.4093)),
    "cifar100_20": (20, 5, (450, 50, 100), (0.4956, 0.4850)),
    "tinyimagenet_10": (10, 20, (450, 50, 50), (0.1249, 0.4344)),
    "tinyimagenet_20": (20, 10, (450, 50, 50), (0.3874, 0.4423)),
    "imagenet_100": (100, 10, (1000, 100, 50), (0.2085, 0.3602)),
    "fceleba_10": (10, 2, (200, 20, 40), (0.3257, 0.4147)),
    "fceleba_20": (20, 2, (200, 20, 40), (0.1984, 0.2694)),
    "femnist_10": (10, 62, (50, 5, 10), (0.4922, 0.4847)),
    "femnist_20": (20, 62, (50, 5, 10), (0.2975, 0.3887)),
}


def test_the_papers_sequences():
    assert set(known_sequences()) == {*EXPECTED, "digits_5"}
    for name, (tasks, classes, counts, dropout) in EXPECTED.items():
        entry = sequences._entry(name)
        assert (entry["tasks"], entry["classes"]) == (tasks, classes)
        assert (entry["train"], entry["val"], entry["test"]) == counts
        assert tuple(entry["dropout"]) == dropout


def test_stratified_keeps_total_and_shares():
    labels = torch.tensor([0] * 732 + [1] * 1300 + [2] * 1300)
    rows = stratified(labels, 1100, generator=torch.Generator().manual_seed(0))
    assert len(rows) == 1100 == len(rows.unique())
    assert labels[rows].bincount().tolist() == [242, 429, 429]
    assert not labels[rows].equal(labels[rows].sort().values)


@pytest.fixture(scope="module")
def digits_root(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


def test_digits_are_split_by_seed(digits_root):
    first, again, other = (load_sequence("digits_5", data_root=digits_root, seed=seed) for seed in (1, 1, 2))
    classes = [task.classes for task in first.table.tasks]
    assert sorted(name for group in classes for name in group) == sorted("0123456789")
    assert classes == [task.classes for task in again.table.tasks]
    assert classes != [task.classes for task in other.table.tasks]
    data, same = (load_task(one, 2, data_root=digits_root, device="cpu") for one in (first, again))
    assert data.fingerprint == same.fingerprint
    assert data.train.inputs.equal(same.train.inputs)
    assert data.train.labels.bincount().float().std() < 4
    assert [len(getattr(data, split)) for split in ("train", "validation", "test")] == [240, 40, 68]
    assert data.train.inputs.shape[1:] == (3, 16, 16)
    # No training image is a validation image.
    known = {image.numpy().tobytes() for image in data.train.inputs}
    assert not any(image.numpy().tobytes() in known for image in data.validation.inputs)


def images(samples):
    return {image.numpy().tobytes() for image in samples.inputs}


def test_the_images_of_a_class_depend_on_the_seed_and_their_rows_are_in_the_fingerprint(digits_root):
    first = load_sequence("digits_5", data_root=digits_root, seed=1)
    reseeded = replace(first, seed=2)  # the same classes in the same tasks
    one, other = (
        load_task(sequence, 2, data_root=digits_root, device="cpu") for sequence in (first, reseeded)
    )
    assert one.task.classes == other.task.classes
    for split in ("train", "validation"):
        assert images(getattr(one, split)) != images(getattr(other, split))
    assert one.fingerprint != other.fingerprint


def test_the_order_of_the_drawn_rows_is_in_the_fingerprint(digits_root, monkeypatch):
    """Samples are learned in this order. Training and test rows count each."""
    sequence = load_sequence("digits_5", data_root=digits_root, seed=1)
    found = {load_task(sequence, 1, data_root=digits_root, device="cpu").fingerprint}
    for total in sequence.counts.values():

        def reversed_rows(labels, count, *, generator, total=total):
            drawn = stratified(labels, count, generator=generator)
            return drawn.flip(0) if count == total else drawn

        monkeypatch.setattr(sequences, "stratified", reversed_rows)
        found.add(load_task(sequence, 1, data_root=digits_root, device="cpu").fingerprint)
    assert len(found) == 4


def test_two_tasks_of_equal_layout_draw_different_rows(digits_root):
    sequence = load_sequence("digits_5", data_root=digits_root, seed=1)
    members, tasks = sequence.members[:1] * 2, sequence.table.tasks[:1] * 2
    twins = replace(sequence, members=members, table=replace(sequence.table, tasks=tasks))
    one, other = (load_task(twins, number, data_root=digits_root, device="cpu") for number in (1, 2))
    assert images(one.validation) != images(other.validation)
    assert one.fingerprint != other.fingerprint


def test_joint_task_counts_all_classes(digits_root):
    sequence = load_sequence("digits_5", data_root=digits_root, seed=1)
    parts = [load_task(sequence, number, data_root=digits_root, device="cpu") for number in range(1, 6)]
    joint = joint_task(sequence, parts, name="all")
    assert joint.train.labels.bincount().float().std() < 4
    assert joint.task.num_classes == 10
    one = (joint.train.labels == 3).nonzero()[0].item()
    image = joint.train.inputs[one]
    assert any(image.equal(other) for other in parts[1].train.inputs[parts[1].train.labels == 1])


def test_missing_raw_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cache/cifar100|cifar100_org"):
        load_sequence("cifar100_10", data_root=tmp_path, seed=1) and load_task(
            load_sequence("cifar100_10", data_root=tmp_path, seed=1), 1, data_root=tmp_path, device="cpu"
        )
    for name, folder in (
        ("tinyimagenet", "tiny-imagenet-200"),
        ("imagenet32", f"{tmp_path}/imagenet "),
        ("fceleba", "fceleba"),
        ("femnist", "femnist"),
    ):
        used = next(one for one in EXPECTED if sequences._entry(one)["table"] == name)
        with pytest.raises(UserError, match=f"run `python -m data.prepare {name}`") as refused:
            load_sequence(used, data_root=tmp_path, seed=1)
        assert folder in str(refused.value)
        with pytest.raises(UserError, match=r"not found: put the .*http.* or give its folder as --source"):
            prepare([name, "--data_root", str(tmp_path)])
