import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import loading
from data.augmentation import Augmenter, Draws
from data.loading import Batches, Normaliser, Samples, evaluation_batches, load_task
from data.tables import Augmentation, load_table
from utils.errors import UserError
from utils.seeds import derive_seed

ENTRY = '[pictures]\nroot = "pictures"\nsize = 8\naugment = { crop_padding = 2, flip = true }\n'


@pytest.fixture
def load(make_tree, make_table):
    """Load the only task: 2 classes with 20 training and 3 test images each."""
    root = make_tree({"pets": ["cat", "dog"]}, train=20)

    def load(*, extra="", **how):
        table = load_table(str(make_table(ENTRY + extra)), data_root=root)
        usual = {"protocol": "published", "seed": 1, "device": "cpu"}
        return load_task(table, table.tasks[0], data_root=root, **(usual | how))

    return load


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(images):
    return {tuple(image.flatten().tolist()) for image in images}


def test_published_validates_on_the_test_images(load):
    data = load()
    assert data.validation is data.test
    assert (len(data.train), len(data.test)) == (40, 6)


def test_heldout_holds_out_a_tenth_of_each_class(load):
    data, published = load(protocol="heldout"), load()
    assert data.validation.labels.bincount().tolist() == [2, 2]
    assert data.train.labels.bincount().tolist() == [18, 18]
    assert rows(data.validation.inputs) | rows(data.train.inputs) == rows(published.train.inputs)
    assert not rows(data.validation.inputs) & rows(data.train.inputs)
    assert torch.equal(data.test.inputs, published.test.inputs)


def test_heldout_is_drawn_by_seed(load):
    same = [load(protocol="heldout", seed=1).validation.inputs for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], load(protocol="heldout", seed=2).validation.inputs)


@pytest.mark.parametrize(("count", "tenth"), [(2, 1), (14, 1), (16, 2), (34, 3), (36, 4)])
def test_the_heldout_tenth_is_rounded(make_tree, make_table, count, tenth):
    root = make_tree({"pets": ["cat", "dog"]}, train=count, test=1)
    table = load_table(str(make_table(ENTRY)), data_root=root)
    data = load_task(table, table.tasks[0], data_root=root, protocol="heldout", seed=1, device="cpu")
    assert data.validation.labels.bincount().tolist() == [tenth, tenth]
    assert data.train.labels.bincount().tolist() == [count - tenth] * 2


def test_two_tasks_of_equal_layout_hold_out_different_rows(make_tree, make_table):
    root = make_tree({"birds": ["cat", "dog"], "pets": ["cat", "dog"]}, train=20)
    table = load_table(str(make_table(ENTRY)), data_root=root)
    drawn = []
    for task in table.tasks:
        how = {"data_root": root, "seed": 1, "device": "cpu"}
        heldout, published = (
            load_task(table, task, protocol=protocol, **how) for protocol in ("heldout", "published")
        )
        held = rows(heldout.validation.inputs)
        drawn.append([tuple(image.flatten().tolist()) in held for image in published.train.inputs])
        assert sum(drawn[-1]) == 4
    assert drawn[0] != drawn[1]


def test_an_unknown_protocol_is_refused(load):
    with pytest.raises(UserError, match="published, heldout"):
        load(protocol="best")


def test_the_fingerprint_follows_the_content_alone(load, tmp_path):
    first = load()
    assert load(protocol="heldout", seed=3).fingerprint == first.fingerprint
    removed = tmp_path / "data/pictures/test/pets/dog/dog_002.png"
    removed.unlink()
    assert load().fingerprint != first.fingerprint


def test_the_fingerprint_follows_the_preprocessing(make_tree, make_table):
    root = make_tree({"pets": ["cat", "dog"]})

    def fingerprint(augment, extra=""):
        text = f'[pictures]\nroot = "pictures"\nsize = 8\naugment = {{ {augment} }}\n{extra}'
        table = load_table(str(make_table(text)), data_root=root)
        how = {"data_root": root, "protocol": "published", "seed": 1, "device": "cpu"}
        return load_task(table, table.tasks[0], **how).fingerprint

    first = fingerprint("crop_padding = 2, flip = true")
    assert fingerprint("crop_padding = 2, flip = true") == first
    others = [
        fingerprint("crop_padding = 1, flip = true"),
        fingerprint("crop_padding = 2, flip = false"),
        fingerprint("crop_padding = 2, flip = true", "mean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.6]\n"),
        fingerprint("crop_padding = 2, flip = true", "mean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.7]\n"),
    ]
    assert len({first, *others}) == 5


def test_mean_and_std_are_the_tables_or_those_of_the_training_images(load):
    given = load(extra="mean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.6]\n")
    assert given.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert given.std.tolist() == pytest.approx([0.4, 0.5, 0.6])
    computed = load()
    pixels = computed.train.inputs.double() / 255
    assert computed.mean.tolist() == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert computed.std.tolist() == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_normalising_is_the_published_formula():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = torch.tensor([0.4242, 0.4783, 0.4975]), torch.tensor([0.2495, 0.2327, 0.2515])
    expected = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    found = Normaliser(mean, std)(images)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-6


def slow_crop_and_flip(image, padding, top, left, flip):
    """Crop (C, S, S) from the image padded with black, then flip it: pixel by pixel."""
    size = image.shape[-1]
    result = torch.zeros_like(image)
    for y in range(size):
        for x in range(size):
            from_y, from_x = y + top - padding, x + left - padding
            if 0 <= from_y < size and 0 <= from_x < size:
                result[:, y, size - 1 - x if flip else x] = image[:, from_y, from_x]
    return result


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_crops_and_flips_are_those_of_the_slow_loop(padding, flip):
    images = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8, generator=generator())
    augmenter = Augmenter(images, Augmentation(crop_padding=padding, flip=flip))
    index = torch.tensor([4, 0, 2, 2, 1, 3, 0, 4])
    draws = augmenter.draw(len(index), generator())
    found = augmenter.take(index, draws)
    assert found.dtype == torch.uint8
    for position, number in enumerate(index):
        expected = slow_crop_and_flip(
            images[number], padding, draws.top[position], draws.left[position], draws.flip[position]
        )
        assert torch.equal(found[position], expected)


def test_draws_are_uniform_and_independent_for_every_image():
    augmenter = Augmenter(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), Augmentation(4, True))
    draws: Draws = augmenter.draw(20_000, generator())
    for drawn, values in ((draws.top, 9), (draws.left, 9), (draws.flip, 2)):
        share = drawn.bincount(minlength=values) / len(drawn)
        assert share.shape == (values,)
        assert (share - 1 / values).abs().max() < 0.015
    together = torch.corrcoef(torch.stack((draws.top, draws.left, draws.flip)).float())
    assert (together - torch.eye(3)).abs().max() < 0.03


def test_without_shuffle_and_augmentation_batches_are_the_images_in_order(load):
    data = load()
    batches = list(Batches(data, batch_size=16, shuffle=False, augment=False).epoch(generator()))
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    expected = data.to_inputs(data.train.inputs)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.train.labels)


def test_an_epoch_has_every_image_once_with_its_label(load):
    data = load()
    batches = Batches(data, batch_size=1, augment=False)
    assert batches.steps_per_epoch == 40
    plain = data.to_inputs(data.train.inputs)
    numbers = []
    for images, labels in batches.epoch(generator()):
        (number,) = (plain == images).flatten(1).all(1).nonzero().flatten().tolist()
        assert labels.item() == data.train.labels[number]
        numbers.append(number)
    assert sorted(numbers) == list(range(40))
    assert numbers != sorted(numbers)


def test_black_padding_is_added_before_normalisation(load):
    data = load()
    black = -data.mean / data.std
    images = torch.cat([images for images, _ in Batches(data, batch_size=8).epoch(generator())])
    corners = images[:, :, 0, 0]
    assert (corners - black).abs().amax(1).lt(1e-6).float().mean() > 0.3


def test_the_same_generator_state_gives_the_same_epochs(load):
    batches = Batches(load(), batch_size=7)
    straight = generator(3)
    first, second = (list(batches.epoch(straight)) for _ in range(2))
    assert not torch.equal(first[0][0], second[0][0])

    # Interrupted in the first epoch, the second is still the same.
    resumed = generator(3)
    next(batches.epoch(resumed))
    for (images, labels), (again, labels_again) in zip(second, batches.epoch(resumed), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


def test_evaluation_batches_keep_the_order(load):
    data = load()
    found = list(evaluation_batches(data.test, data.to_inputs, batch_size=4))
    assert [len(labels) for _, labels in found] == [4, 2]
    expected = data.to_inputs(data.test.inputs)
    assert torch.equal(torch.cat([images for images, _ in found]), expected)
    assert torch.equal(torch.cat([labels for _, labels in found]), data.test.labels)


def test_batches_do_not_change_the_samples(load):
    data = load()
    before = data.train.inputs.clone()
    for images, _ in Batches(data, batch_size=8).epoch(generator()):
        images.zero_()
    assert torch.equal(data.train.inputs, before)


def test_the_length_of_samples_is_their_count():
    assert len(Samples(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))) == 3


def test_derived_seeds_are_stable_and_distinct():
    assert derive_seed(1, "cifar100", "fish") == 3553249247077736131
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert 0 <= derive_seed("x") < 2**63


def test_loading_imports_nothing_slow():
    slow = ("torchvision", "sklearn", "scipy", "PIL")
    code = f"import sys, data.loading; print([name for name in {slow} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def test_resized_batches_keep_every_other_setting(load):
    data = load(protocol="heldout")
    for how in ({"shuffle": False, "augment": False}, {"shuffle": True, "augment": True}):
        resized = Batches(data, batch_size=16, val_batch_size=3, **how).resized(5)
        expected = Batches(data, batch_size=5, val_batch_size=3, **how)
        assert resized.steps_per_epoch == expected.steps_per_epoch == 8  # 36 images
        for left, right in (
            (resized.epoch(generator()), expected.epoch(generator())),
            (resized.validation(), expected.validation()),
            (resized.test(), expected.test()),
        ):
            for (images, labels), (same, same_labels) in zip(left, right, strict=True):
                assert torch.equal(images, same) and torch.equal(labels, same_labels)


def test_by_default_an_epoch_is_shuffled_and_augmented_and_500_samples_are_evaluated_at_once(load):
    data = load()
    plain = data.to_inputs(data.train.inputs)
    ((images, labels),) = Batches(data, batch_size=40).epoch(generator())
    assert not torch.equal(labels, data.train.labels)
    assert not any((plain == image).flatten(1).all(1).any() for image in images[:8])
    many = Samples(data.test.inputs.repeat(84, 1, 1, 1), data.test.labels.repeat(84))  # 504
    batches = Batches(replace(data, test=many), batch_size=40)
    assert [len(labels) for _, labels in batches.test()] == [500, 4]


def test_validation_batches_are_the_validation_samples(load):
    data = load(protocol="heldout")
    batches = Batches(data, batch_size=8)
    for found, samples in ((batches.validation(), data.validation), (batches.test(), data.test)):
        ((images, labels),) = found
        assert torch.equal(images, data.to_inputs(samples.inputs))
        assert torch.equal(labels, samples.labels)
    assert len(data.validation) != len(data.test)


@pytest.mark.parametrize(
    ("augment", "changed"),
    [("flip = true", True), ("crop_padding = 1", True), ("crop_padding = 0, flip = false", False)],
)
def test_images_are_cropped_and_flipped_as_the_table_defines(make_tree, make_table, augment, changed):
    root = make_tree({"pets": ["cat", "dog"]})
    text = f'[pictures]\nroot = "pictures"\nsize = 8\naugment = {{ {augment} }}\n'
    table = load_table(str(make_table(text)), data_root=root)
    how = {"data_root": root, "protocol": "published", "seed": 1, "device": "cpu"}
    data = load_task(table, table.tasks[0], **how)
    ((images, _),) = Batches(data, batch_size=20, shuffle=False).epoch(generator())
    assert torch.equal(images, data.to_inputs(data.train.inputs)) != changed


def test_a_batch_size_of_zero_is_refused(load):
    data = load()
    assert Batches(data, batch_size=1).steps_per_epoch == 40
    with pytest.raises(UserError, match=r"^the batch size is 0: give at least 1$"):
        Batches(data, batch_size=0)


def test_one_split_alone_leaves_the_others_empty(load):
    data = load(protocol="heldout")
    for split in ("train", "validation", "test"):
        only = data.only(split)
        for name in ("train", "validation", "test"):
            found, whole = getattr(only, name), getattr(data, name)
            assert len(found) == (len(whole) if name == split else 0)
            assert found.inputs.shape[1:] == whole.inputs.shape[1:]
            assert (found.inputs.dtype, found.labels.dtype) == (torch.uint8, torch.int64)


def test_first_inputs_are_the_first_validation_images(load):
    data = load(protocol="heldout")
    expected = data.to_inputs(data.validation.inputs)
    assert torch.equal(data.first_inputs(3), expected[:3])
    assert torch.equal(data.first_inputs(100), expected)
    assert data.encoder_identity is None


def test_a_class_of_one_image_cannot_be_held_out_from(make_tree, make_table):
    root = make_tree({"pets": ["cat", "dog"]}, train=1)
    table = load_table(str(make_table(ENTRY)), data_root=root)
    with pytest.raises(
        UserError, match=r"^task pets, class cat has 1 training images: .* at least 2: add some$"
    ):
        load_task(table, table.tasks[0], data_root=root, protocol="heldout", seed=1, device="cpu")


def test_a_task_names_its_table_its_protocol_and_itself(load):
    data = load(protocol="heldout")
    assert (data.table.name, data.task.name, data.protocol) == ("pictures", "pets", "heldout")
    assert (data.mean.dtype, data.std.dtype) == (torch.float32, torch.float32)


def test_an_epoch_of_many_chunks_is_that_of_one(load, monkeypatch):
    """Chunks are a matter of speed."""
    batches = Batches(load(), batch_size=3)
    monkeypatch.setattr(loading, "_CHUNK", 4)
    chunked = list(batches.epoch(generator()))
    monkeypatch.setattr(loading, "_CHUNK", 100)
    for (images, labels), (same, same_labels) in zip(chunked, batches.epoch(generator()), strict=True):
        assert torch.equal(images, same) and torch.equal(labels, same_labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_sees_the_batches_of_the_cpu(load):
    on_cpu, on_gpu = (
        Batches(load(device=device), batch_size=8).epoch(generator()) for device in ("cpu", "cuda")
    )
    for (images, labels), (same, same_labels) in zip(on_cpu, on_gpu, strict=True):
        assert torch.allclose(images, same.cpu(), atol=1e-6)
        assert torch.equal(labels, same_labels.cpu())


def test_training_samples_are_drawn_per_class(load):
    data, everything = load(train_per_class=5), load()
    assert data.train.labels.bincount().tolist() == [5, 5]
    assert rows(data.train.inputs) < rows(everything.train.inputs)
    assert torch.equal(data.test.inputs, everything.test.inputs)
    assert data.train_per_class == 5 and everything.train_per_class is None
    assert torch.equal(load(train_per_class=5).train.inputs, data.train.inputs)
    assert rows(load(train_per_class=5, seed=2).train.inputs) != rows(data.train.inputs)


def test_a_smaller_draw_is_part_of_a_larger_one_and_has_its_own_fingerprint(load):
    few, more = load(train_per_class=5), load(train_per_class=12)
    assert rows(few.train.inputs) < rows(more.train.inputs)
    assert len({few.fingerprint, more.fingerprint, load().fingerprint}) == 3


def test_statistics_of_a_draw_see_the_drawn_images_alone(load):
    data = load(train_per_class=3)
    values = data.train.inputs.double() / 255
    assert torch.allclose(data.mean.double(), values.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(data.std.double(), values.std((0, 2, 3), correction=0), atol=1e-6)


def test_held_out_samples_come_from_the_draw(load):
    data, drawn = load(train_per_class=10, protocol="heldout"), load(train_per_class=10)
    assert data.validation.labels.bincount().tolist() == [1, 1]
    assert rows(data.validation.inputs) | rows(data.train.inputs) == rows(drawn.train.inputs)


def test_a_draw_that_is_too_small_or_too_large(load, caplog):
    with pytest.raises(UserError, match=r"leaves none to hold out: give --train_per_class 2"):
        load(train_per_class=1, protocol="heldout")
    caplog.set_level("INFO")
    data = load(train_per_class=21)
    assert "fewer than 21 training samples of cat, dog: all of them are used" in caplog.text
    assert data.fingerprint == load().fingerprint and len(data.train) == 40


def test_the_table_sets_how_many_are_drawn(load):
    assert len(load(extra="train_per_class = 4\n").train) == 8
    task = '[[pictures.tasks]]\nname = "pets"\ntrain_per_class = "all"\n'
    assert len(load(extra=f"train_per_class = 4\n{task}").train) == 40
    assert len(load(train_per_class=0, extra="train_per_class = 4\n").train) == 40
    assert len(load(train_per_class=6, extra="train_per_class = 4\n").train) == 12
    with pytest.raises(UserError, match="train_per_class is 0: write a number from 1"):
        load(extra="train_per_class = 0\n")
