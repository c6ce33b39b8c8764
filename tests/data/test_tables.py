import sys

import pytest

from data import prepare
from data.tables import RESERVED, Augmentation, known_tables, load_table
from utils.errors import UserError

PICTURES = '[pictures]\nroot = "pictures"\nsize = 8\n'


@pytest.fixture
def cifar(tmp_path):
    return load_table("cifar100", data_root=tmp_path)


def test_cifar100_is_the_published_table(cifar):
    assert [task.id for task in cifar.tasks] == list(range(1, 21))
    fish = cifar.task("fish")
    assert (fish.id, fish.num_classes, fish.modality) == (2, 5, "image")
    assert fish.classes == ("aquarium_fish", "flatfish", "ray", "shark", "trout")
    assert (fish.mean, fish.std) == ((0.4162, 0.4626, 0.4577), (0.2857, 0.2574, 0.2705))
    assert cifar.task("14").name == "non-insect_invertebrates"
    assert (cifar.channels, cifar.size, cifar.augment) == (3, 32, Augmentation(crop_padding=4, flip=True))


def test_digits_crop_but_never_flip(tmp_path):
    table = load_table("digits", data_root=tmp_path)
    assert [task.name for task in table.tasks][0::4] == ["zero_one", "eight_nine"]
    assert table.augment == Augmentation(crop_padding=4, flip=False)
    assert table.tasks[0].mean is None


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        ("4", [4]),
        ("1-3", [1, 2, 3]),
        ("fish,14", [2, 14]),
        ("14, fish", [14, 2]),
        ("2-3,fish,3,1", [2, 3, 1]),
        ("large_man-made_outdoor_things", [10]),
        ("all", list(range(1, 21))),
    ],
)
def test_selecting_tasks(cifar, spec, ids):
    assert [task.id for task in cifar.select(spec)] == ids


@pytest.mark.parametrize("spec", ["21", "0", "18-22", "flsh", "fish,,4", "", "5-2", "1-", "-3"])
def test_an_unknown_selection_is_refused(cifar, spec):
    with pytest.raises(UserError):
        cifar.select(spec)


def test_an_unknown_task_lists_the_known_ones(cifar):
    with pytest.raises(UserError, match=r"'flsh'.*1 aquatic_mammals, 2 fish.*20 vehicles_2"):
        cifar.task("flsh")


def test_an_unknown_table_lists_the_known_ones(tmp_path):
    assert {"digits", "cifar100"} <= set(known_tables())
    with pytest.raises(UserError, match=r"'cifar10'.*digits, digits_few, cifar100"):
        load_table("cifar10", data_root=tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.toml not found.*digits, digits_few, cifar100"):
        load_table("nowhere.toml", data_root=tmp_path)


def test_tasks_and_classes_are_read_from_the_folders(make_tree, make_table):
    root = make_tree({"pets": ["dog", "cat"], "cars": ["van", "bus"]})
    (root / "pictures/train/.hidden").mkdir()
    table = load_table(str(make_table(PICTURES)), data_root=root)
    assert [(task.id, task.name, task.classes) for task in table.tasks] == [
        (1, "cars", ("bus", "van")),
        (2, "pets", ("cat", "dog")),
    ]
    assert (table.name, table.size, table.augment) == ("pictures", 8, Augmentation(0, False))


def test_declared_tasks_keep_their_order_and_sort_their_classes(tmp_path, make_table):
    entry = (
        PICTURES + 'tasks = [{ name = "pets", classes = ["dog", "cat"] }, { name = "cars", classes = ["a"] }]'
    )
    table = load_table(str(make_table(entry)), data_root=tmp_path)
    assert [(task.name, task.classes) for task in table.tasks] == [("pets", ("cat", "dog")), ("cars", ("a",))]


def test_tasks_without_mean_and_std_use_the_tables(tmp_path, make_table):
    entry = PICTURES + "mean = [0.1, 0.2, 0.3]\nstd = [1, 1, 1]\n"
    entry += '[[pictures.tasks]]\nname = "a"\nclasses = ["x"]\n'
    entry += '[[pictures.tasks]]\nname = "b"\nclasses = ["x"]\nmean = [0, 0, 0]\nstd = [0.5, 0.5, 0.5]\n'
    first, second = load_table(str(make_table(entry)), data_root=tmp_path).tasks
    assert (first.mean, first.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert (second.mean, second.std) == ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sizes = 8", "unknown key sizes"),
        ("augment = { padding = 4 }", "unknown key padding"),
        ('tasks = [{ name = "a", classes = ["x"], klass = 1 }]', "unknown key klass"),
        ('tasks = [{ name = "../a", classes = ["x"] }]', "cannot be the name of a task"),
        ('tasks = [{ name = ".a", classes = ["x"] }]', "cannot be the name of a task"),
        ('tasks = [{ name = "a,b", classes = ["x"] }]', "cannot be the name of a task"),
        ('tasks = [{ name = "a", classes = ["x/y"] }]', "cannot be the name of a class"),
        ('tasks = [{ name = "12", classes = ["x"] }]', "reads as an id"),
        ('tasks = [{ name = "a", classes = ["x"] }, { name = "a", classes = ["x"] }]', "a occurs twice"),
        ('tasks = [{ name = "a", classes = ["x", "x"] }]', "class twice"),
        ('tasks = [{ classes = ["x"] }]', "no name"),
        ("tasks = []", "no tasks"),
        ("mean = [0.5, 0.5, 0.5]", "only mean"),
        ("mean = [0.5]\nstd = [0.5]", "each of 3 channels"),
        ("mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0]", "above 0"),
        ('size = "big"', "whole number"),
        ("channels = 4", "channels is 4"),
        ('modality = "smell"', "choose from image"),
        ('source = "web"', "choose from folders, digits"),
        (
            'source = "docstrings"\ntasks = [{ name = "a", classes = ["ast"], modality = "image" }]',
            "has images, but the source docstrings has texts",
        ),
        ("augment = { flip = 1 }", "true or false"),
        ("size = 100000", "size is 100000: write a number from 1 to 1024"),
        ("size = 0", "size is 0: write a number from 1 to 1024"),
        ("size = 0x1" + "0" * 5000, "size is a number of thousands of digits"),
        ("channels = 0x1" + "0" * 5000, "channels is a number of thousands of digits"),
        ("augment = { crop_padding = 100000 }", "crop_padding is 100000: write a number from 0 to 64"),
        ("augment = { crop_padding = -1 }", "crop_padding is -1: write a number from 0 to 64"),
        ("mean = [0, 0, 0]\nstd = [1, 1, inf]", "std is .*write numbers from"),
        ("mean = [0, 0, 0]\nstd = [1, 1, nan]", "std is .*above 0"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 1e-300]", "std is .*write numbers from"),
        ("mean = [0, 0, nan]\nstd = [1, 1, 1]", "mean is .*write numbers from"),
        ("mean = [0, 0, -inf]\nstd = [1, 1, 1]", "mean is .*write numbers from"),
        ("mean = [0, 0, 0x1" + "0" * 5000 + "]\nstd = [1, 1, 1]", "mean is a number of thousands of digits"),
        ("size = " + "9" * 5000, "not valid TOML"),
        ("size = " + "[" * 5000 + "]" * 5000, "nests too deep"),
        (f'tasks = [{{ name = "{"a" * 201}", classes = ["x"] }}]', "at most 200 bytes"),
        ('tasks = [{ name = "1-2", classes = ["x"] }]', "reads as an id or a range"),
        ("size = ", "not valid TOML"),
    ],
)
def test_an_invalid_entry_is_refused_by_name(tmp_path, make_table, entry, message):
    path = make_table('[pictures]\nroot = "pictures"\n' + entry)
    with pytest.raises(UserError, match=message) as caught:
        load_table(str(path), data_root=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [*RESERVED, "-x", "--help", "-"])
def test_task_names_of_the_command_line_are_refused(tmp_path, make_table, name):
    path = make_table(PICTURES + f'tasks = [{{ name = "{name}", classes = ["x"] }}]')
    with pytest.raises(
        UserError, match=rf"task 1: the task name '{name}' .* command line: rename it"
    ) as caught:
        load_table(str(path), data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_with_such_names_are_refused(make_tree, make_table):
    root = make_tree({"same": ["cat"]})
    with pytest.raises(UserError, match="the task name 'same' has a meaning"):
        load_table(str(make_table(PICTURES)), data_root=root)
    (root / "pictures/train/same").rename(root / "pictures/train/caf\udce9")
    with pytest.raises(UserError, match=r"'caf\\udce9' cannot be the name of a task.*UTF-8"):
        load_table(str(make_table(PICTURES)), data_root=root)


def test_a_long_id_is_refused_in_a_short_line(cifar):
    for spec in ("9" * 5000, "1-" + "9" * 5000):
        with pytest.raises(UserError, match="has no task '9") as caught:
            cifar.select(spec)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text", ["", '["a/b"]\nroot = "x"', "[pictures]", '[a]\nroot="a"\n[b]\nroot="b"', "a = 1"]
)
def test_a_file_without_exactly_one_valid_table_is_refused(tmp_path, make_table, text):
    with pytest.raises(UserError, match=r"table\.toml"):
        load_table(str(make_table(text)), data_root=tmp_path)


def test_a_users_table_cannot_take_the_name_of_a_known_one(tmp_path, make_table):
    with pytest.raises(UserError, match="choose another"):
        load_table(str(make_table('[cifar100]\nroot = "mine"')), data_root=tmp_path)


def test_omitted_tasks_need_the_folders(tmp_path, make_table):
    with pytest.raises(UserError, match="pictures/train not found: put the images there"):
        load_table(str(make_table(PICTURES)), data_root=tmp_path)


def test_a_class_only_in_the_test_split_is_refused(make_tree, make_table):
    root = make_tree({"pets": ["cat", "dog"]})
    (root / "pictures/test/pets/emu").mkdir()
    with pytest.raises(UserError, match="train/pets/emu not found"):
        load_table(str(make_table(PICTURES)), data_root=root)


def test_prepare_lists_tasks_and_classes_in_its_source(make_tree, make_table, tmp_path):
    tree = make_tree({"cats": ["lynx", "puma"], "dogs": ["dingo", "wolf"]}) / "pictures"
    config = str(make_table(PICTURES))
    for number, source in enumerate((tree, tree.parent)):
        data_root = tmp_path / f"empty{number}"
        prepare.main([config, "--source", str(source), "--data_root", str(data_root)])
        tasks = load_table(config, data_root=data_root).tasks  # from the cache
        assert [(task.name, *task.classes) for task in tasks] == [
            ("cats", "lynx", "puma"),
            ("dogs", "dingo", "wolf"),
        ]


def test_missing_images_are_reported_with_the_folder_and_the_remedy(make_tree, make_table, tmp_path):
    config, nowhere = str(make_table(PICTURES)), tmp_path / "nowhere"
    elsewhere = r"put the images there .*, or set DATA_ROOT \(--data_root\)"
    with pytest.raises(UserError, match=f"^{nowhere}/pictures/train not found: {elsewhere}"):
        load_table(config, data_root=nowhere)
    data_root = make_tree({"cats": ["lynx"]})
    with pytest.raises(UserError, match=f"^{nowhere}/train not found: give the folder that .* as --source$"):
        load_table(config, data_root=data_root, source=nowhere)
    (data_root / "pictures/train/cats/puma").mkdir()
    empty = f"^{data_root}/pictures/train/cats/puma holds no images"
    with pytest.raises(UserError, match=f"{empty}: {elsewhere}"):
        prepare.main([config, "--data_root", str(data_root)])


def test_a_table_of_four_times_the_tasks_takes_four_times_the_calls(tmp_path, monkeypatch):
    def work(count):
        folder = tmp_path / str(count)
        names = [f"task_{number}" for number in range(1, count + 1)]
        entries = [f'[[pictures.tasks]]\nname = "{name}"\nclasses = ["a", "b"]\n' for name in names]
        borrowed = [
            f'[[pictures.tasks]]\nname = "{name}"\ntable = "digits"\n' for name in ("zero_one", "two_three")
        ]
        folder.mkdir()
        path = folder / "pictures.toml"
        path.write_text('[pictures]\nroot = "pictures"\nsize = 32\n' + "".join(entries + borrowed))
        table = load_table(str(path), data_root=folder)
        assert [task.name for task in table.select(",".join(names))] == names
        assert [table.task(number).name for number in range(1, count + 1)] == names

    assert calls(work, 200) < 5 * calls(work, 50)


def calls(function, *arguments):
    """The number of calls that a function makes, directly or not, the resumptions of generators included."""
    made = []
    sys.setprofile(lambda frame, event, _: made.append(event) if event in ("call", "c_call") else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return len(made)
