"""Sequences: splits, order, totals."""

from dataclasses import replace

import pytest
import torch

from data import loading, sequences
from data.prepare import main as prepare
from data.sequences import (
    drawn_by_class,
    in_proportion,
    joint_task,
    known_sequences,
    load_sequence,
    load_task,
    require_enough_images,
)
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
        entry = sequences._entries()[name]
        assert (entry["tasks"], entry["classes"]) == (tasks, classes)
        assert (entry["train"], entry["val"], entry["test"]) == counts
        assert tuple(entry["dropout"]) == dropout


def test_a_stratified_draw_keeps_total_and_shares():
    labels = torch.tensor([0] * 732 + [1] * 1300 + [2] * 1300)
    quota = in_proportion(labels.bincount(), 1100)
    rows = drawn_by_class(labels, quota, generator=torch.Generator().manual_seed(0))
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
    for total in (240, 40, 68):

        def reversed_rows(labels, quota, *, generator, total=total):
            drawn = drawn_by_class(labels, quota, generator=generator)
            return drawn.flip(0) if quota.sum() == total else drawn

        monkeypatch.setattr(sequences, "drawn_by_class", reversed_rows)
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
        used = next(one for one in EXPECTED if sequences._entries()[one]["table"] == name)
        with pytest.raises(UserError, match=f"run `python -m data.prepare {name}`") as refused:
            load_sequence(used, data_root=tmp_path, seed=1)
        assert folder in str(refused.value)
        with pytest.raises(UserError, match=r"not found: put the .*http.* or give its folder as --source"):
            prepare([name, "--data_root", str(tmp_path)])


# Sequences of a user's own


@pytest.fixture
def own(tmp_path, make_tree):
    """Two tasks of 2 and 3 classes in `pets.toml`; writes `own.toml` and loads a sequence from it."""
    data = make_tree({"dogs": ["big", "small"], "cats": ["black", "red", "white"]}, train=12, size=16)
    (tmp_path / "pets.toml").write_text('[pets]\nroot = "pictures"\nsize = 16\n')

    def load(text=None, *, which="own.toml", seed=1):
        if text is not None:
            (tmp_path / "own.toml").write_text(text)
        sequence = load_sequence(str(tmp_path / which), data_root=data, seed=seed)
        require_enough_images(sequence, data_root=data)
        return sequence, [
            load_task(sequence, number, data_root=data, device="cpu")
            for number in range(1, len(sequence.table.tasks) + 1)
        ]

    return load


def sizes(data):
    return [getattr(data, split).labels.bincount().tolist() for split in ("train", "validation", "test")]


def test_every_task_of_an_own_table_is_learned_whole(own):
    sequence, tasks = own(which="pets.toml")
    assert sequence.name == "pets" and not sequence.notes
    assert {data.task.name: sizes(data) for data in tasks} == {
        "dogs": [[11] * 2, [1] * 2, [3] * 2],
        "cats": [[11] * 3, [1] * 3, [3] * 3],
    }


def test_counts_by_class_by_task_and_all(own):
    _, (one, other) = own('[mine]\ntable = "pets.toml"\nper = "class"\ntrain = 7\nval = 4\ntest = 2\n')
    for data in (one, other):
        assert sizes(data) == [[count] * data.task.num_classes for count in (7, 4, 2)]
    _, tasks = own('[mine]\ntable = "pets.toml"\nper = "task"\ntrain = 12\nval = 6\n')
    for data in tasks:
        assert [sum(counts) for counts in sizes(data)] == [12, 6, 3 * data.task.num_classes]


def test_a_sequence_that_leaves_classes_out_says_so(own):
    sequence, tasks = own('[mine]\ntable = "pets.toml"\nclasses = 2\n')
    assert [data.task.num_classes for data in tasks] == [2, 2]
    (note,) = sequence.notes
    assert note.startswith("task cats: takes 2 of its 3 classes, by seed: ")
    sequence, tasks = own('[mine]\ntable = "pets.toml"\nby = "classes"\nclasses = 2\n')
    assert len(tasks) == 2
    assert sequence.notes == ("mine takes 4 of the 5 classes of table pets, by seed",)


def test_several_sequences_in_a_file_are_picked_by_name(own):
    text = '[a]\ntable = "pets.toml"\n[b]\ntable = "pets.toml"\nval = 2\n'
    with pytest.raises(UserError, match=r"holds 2 sequences \(a, b\): pick one, as .*own.toml:a"):
        own(text)
    first, second = (own(text, which=f"own.toml:{name}")[0] for name in "ab")
    assert (first.name, second.name) == ("a", "b")
    with pytest.raises(UserError, match="has no sequence 'c': choose from a, b"):
        own(which="own.toml:c")


def test_the_definition_depends_on_the_sequence_and_its_table_only(own, tmp_path):
    text = '[mine]\ntable = "pets.toml"\n'
    first = own(text)[0].definition
    assert own(f"# a comment\n{text}")[0].definition == first
    assert own(f"{text}val = 2\n")[0].definition != first
    (tmp_path / "pets.toml").write_text('[pets]\nroot = "pictures"\nsize = 16\naugment = {flip = true}\n')
    assert own(text)[0].definition != first
    assert load_sequence("digits_5", data_root=tmp_path, seed=1).definition is None


def test_too_few_images_name_the_class_and_its_number(own):
    with pytest.raises(UserError) as refused:
        own('[mine]\ntable = "pets.toml"\nper = "class"\ntrain = 11\nval = 2\n')
    assert "has 12 training images" in str(refused.value)
    assert "too few for val = 2 and train = 11 of each class: add images, or lower" in str(refused.value)
    assert "data.prepare" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("tasks = 0", "tasks is 0: write a whole number from 1 to 255 or 'all'"),
        ("tasks = 3", "needs 3 tasks, but table pets has 2"),
        ("classes = 4", "classes is 4, but task"),
        ("classes = true", "classes is True"),
        ("train = -1", "train is -1"),
        ("train = 1e9", "train is 1000000000.0"),
        ('val = "all"', "val is 'all': write a number, or leave it out for a tenth of each class"),
        ("dropout = [0.5, 1.0]", "dropout is"),
        ("dropout = [nan, 0.1]", "dropout is"),
        ("dropout = 0.5", "dropout is 0.5"),
        ("width = 0", "width is 0"),
        ("width = inf", "width is inf"),
        ("size = 100000", "size is 100000"),
        ("mean = [0.5]\nstd = [0.5]", "write one number for each of 3 channels"),
        ('per = "user"', "per is 'user': choose from class, task"),
        ('by = "users"', "by is 'users': choose from classes, tasks"),
        ('by = "classes"', "needs the classes of a task"),
        ("epochs = 3", "unknown key epochs"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(own, line, named):
    with pytest.raises(UserError) as refused:
        own(f'[mine]\ntable = "pets.toml"\n{line}\n')
    assert "[mine]" in str(refused.value) and named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["digits_5", '"two words"', '"../up"', '".hidden"'])
def test_names_that_are_taken_or_cannot_name_a_run_are_refused(own, name):
    with pytest.raises(UserError, match=r"own.toml \["):
        own(f'[{name}]\ntable = "pets.toml"\n')


def test_texts_are_refused(tmp_path):
    (tmp_path / "words.toml").write_text(
        '[words]\nsource = "docstrings"\n[[words.tasks]]\nname = "os"\nclasses = ["a", "b"]\n'
    )
    with pytest.raises(UserError, match=r"task os of table words has texts: .* read images only"):
        load_sequence(str(tmp_path / "words.toml"), data_root=tmp_path, seed=1)


# Sequences of a small table.

ENTRY = {"tasks": 3, "classes": 2, "train": 3, "val": 1, "test": 2, "dropout": [0.1, 0.2]}
FOLDERS = {"birds": ["crow", "duck", "owl"], "pets": ["cat", "dog", "rat"]}


@pytest.fixture
def small(make_tree, make_table, monkeypatch):
    """A function that adds to the known sequences one of the images of `FOLDERS`, and its data root."""
    root = make_tree(FOLDERS, train=5, test=3)
    text = '[animals]\nroot = "pictures"\nsize = 8\naugment = { crop_padding = 2, flip = true }\n'
    table = str(make_table(text))

    def define(**more):
        entry = {**ENTRY, "table": table, "by": "classes", **more}
        monkeypatch.setattr(sequences, "_entries", lambda: {"small": entry})
        return root

    return define


def images_by_class(source, root, split):
    """Class name → images of one split, read task by task."""
    found = {}
    for task in source.tasks:
        how = {"data_root": root, "protocol": "published", "seed": 1, "device": "cpu"}
        samples = getattr(loading.load_task(source, task, **how), split)
        for label, name in enumerate(task.classes):
            found[name] = images(loading.Samples(samples.inputs[samples.labels == label], samples.labels))
    return found


def test_every_image_of_a_task_comes_from_its_class(small):
    root = small()
    sequence = load_sequence("small", data_root=root, seed=1)
    assert [(task.id, task.name) for task in sequence.table.tasks] == [
        *((1, "task_1"), (2, "task_2"), (3, "task_3"))
    ]
    names = [name for task in sequence.table.tasks for name in task.classes]
    assert sorted(names) == ["cat", "crow", "dog", "duck", "owl", "rat"]
    known = {split: images_by_class(sequence.source, root, split) for split in ("train", "test")}
    for number, task in enumerate(sequence.table.tasks, 1):
        data = load_task(sequence, number, data_root=root, device="cpu")
        assert [len(getattr(data, split)) for split in ("train", "validation", "test")] == [6, 2, 4]
        for split, origin in (("train", "train"), ("validation", "train"), ("test", "test")):
            samples = getattr(data, split)
            for image, label in zip(samples.inputs, samples.labels.tolist(), strict=True):
                assert image.numpy().tobytes() in known[origin][task.classes[label]]
        assert not images(data.train) & images(data.validation)
        assert (data.table, data.task, data.protocol) == (sequence.table, task, "heldout")


def test_a_sequence_without_settings_of_its_own_has_imagenets_statistics_and_no_augmentation(small):
    root = small()
    sequence = load_sequence("small", data_root=root, seed=1)
    assert (sequence.name, sequence.table.name, sequence.source.name) == ("small", "small", "animals")
    assert (sequence.width, sequence.dropout, sequence.seed) == (1.0, (0.1, 0.2), 1)
    assert (sequence.source.size, sequence.table.size) == (8, 8)
    assert (sequence.table.augment.crop_padding, sequence.table.augment.flip) == (0, False)
    data = load_task(sequence, 1, data_root=root, device="cpu")
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert data.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert data.task.modality == "image"


def test_a_sequence_can_set_size_statistics_and_width(small):
    root = small(size=6, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], width=0.5)
    sequence = load_sequence("small", data_root=root, seed=1)
    assert (sequence.source.name, sequence.table.size, sequence.width) == ("animals-6", 6, 0.5)
    data = load_task(sequence, 1, data_root=root, device="cpu")
    assert data.train.inputs.shape == (6, 3, 6, 6)
    assert data.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert data.std.tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_names_of_tasks_sort_in_their_order(small, digits_root):
    small(table="digits", tasks=10, classes=1)
    tasks = load_sequence("small", data_root=digits_root, seed=1).table.tasks
    assert [task.name for task in tasks] == [*(f"task_0{number}" for number in range(1, 10)), "task_10"]


def test_users_are_tasks_in_an_order_drawn_by_seed(small):
    root = small(by="tasks", tasks=2, classes=3)
    orders = {
        tuple(task.name for task in load_sequence("small", data_root=root, seed=seed).table.tasks)
        for seed in range(8)
    }
    assert orders == {("birds", "pets"), ("pets", "birds")}
    sequence = load_sequence("small", data_root=root, seed=1)
    assert all(list(task.classes) == FOLDERS[task.name] for task in sequence.table.tasks)
    assert [task.id for task in sequence.table.tasks] == [1, 2]
    # A table with more users than the sequence needs: the first ones.
    fewer = load_sequence("small", data_root=small(by="tasks", tasks=1, classes=3), seed=1)
    assert [task.name for task in fewer.table.tasks] == ["birds"]
    known = images_by_class(fewer.source, root, "train")
    data = load_task(fewer, 1, data_root=root, device="cpu")
    assert images(data.train) <= known["crow"] | known["duck"] | known["owl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 4}, r"cache/animals holds 6 of 8 classes: run `python -m data.prepare animals`"),
        ({"by": "tasks", "tasks": 3}, r"cache/animals holds 2 of 3 tasks: run `python"),
    ],
)
def test_a_table_with_too_few_classes_or_users_is_refused(small, settings, message):
    root = small()
    load_task(load_sequence("small", data_root=root, seed=1), 1, data_root=root, device="cpu")
    with pytest.raises(UserError, match=message) as refused:
        load_sequence("small", data_root=small(**settings), seed=1)
    assert str(refused.value).endswith(f"raw files in {root / 'pictures'} or says where to get them")


@pytest.mark.parametrize(
    ("split", "needed"),
    [
        ("train", "10 training images in .*, too few for val = 1 and train = 5 times the number of classes"),
        ("test", "6 test images in .*, too few for test = 4 times the number of classes"),
    ],
)
def test_a_task_with_too_few_images_is_refused(small, split, needed):
    root = small(**{split: 5 if split == "train" else 4})
    sequence = load_sequence("small", data_root=root, seed=1)
    with pytest.raises(UserError, match=rf"^small: task task_1 has {needed}: complete the raw files"):
        load_task(sequence, 1, data_root=root, device="cpu")


def test_an_unknown_sequence_is_refused_by_name():
    with pytest.raises(UserError, match=r"^unknown sequence 'other': choose from digits_5, cifar100_10, "):
        load_sequence("other", data_root=None, seed=1)


def test_a_joint_task_holds_the_samples_of_every_task_shuffled_by_seed(small):
    root = small()
    sequence = load_sequence("small", data_root=root, seed=1)
    parts = [load_task(sequence, number, data_root=root, device="cpu") for number in (1, 2, 3)]
    joint = joint_task(sequence, parts, name="all")
    assert (joint.task.id, joint.task.name) == (0, "all")
    assert joint.task.classes[:3] == (
        *(f"task_1/{name}" for name in parts[0].task.classes),
        f"task_2/{parts[1].task.classes[0]}",
    )
    for split in ("train", "validation", "test"):
        expected = {
            (image.numpy().tobytes(), 2 * number + label)
            for number, part in enumerate(parts)
            for image, label in zip(
                getattr(part, split).inputs, getattr(part, split).labels.tolist(), strict=True
            )
        }
        found = getattr(joint, split)
        pairs = [
            (image.numpy().tobytes(), label)
            for image, label in zip(found.inputs, found.labels.tolist(), strict=True)
        ]
        assert {*pairs} == expected and len(pairs) == len(expected)
    assert joint.train.labels.tolist() != joint.train.labels.sort().values.tolist()
    again, renamed = (joint_task(sequence, parts, name=name) for name in ("all", "other"))
    reseeded = joint_task(replace(sequence, seed=2), parts, name="all")
    assert torch.equal(again.train.labels, joint.train.labels)
    assert again.fingerprint == joint.fingerprint
    assert not torch.equal(reseeded.train.labels, joint.train.labels)
    assert not torch.equal(renamed.train.labels, joint.train.labels)
    assert joint_task(sequence, parts[::-1], name="all").fingerprint != joint.fingerprint


@pytest.mark.parametrize(
    ("sizes", "total", "drawn"),
    [
        ([3, 3, 3], 4, [2, 1, 1]),  # the first of equal remainders is rounded up
        ([1, 8, 3], 6, [1, 4, 1]),  # 0.5, 4, 1.5: one of two
        ([2, 3], 5, [2, 3]),
        ([2, 3], 0, [0, 0]),
        ([], 0, []),
    ],
)
def test_shares_are_rounded_by_largest_remainder(sizes, total, drawn):
    counts = torch.tensor(sizes, dtype=torch.int64)
    assert in_proportion(counts, total).tolist() == drawn
