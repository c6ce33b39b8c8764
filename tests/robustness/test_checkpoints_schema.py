"""Every field of a checkpoint is replaced by hostile values: one line names the file, or all goes well."""

import copy
import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data import tables
from methods.approaches import APPROACHES
from methods.approaches.base import Settings
from methods.ownership import SharedNetwork
from pipeline.architectures import PLAIN, SHARABLE, architecture, registry_of
from tests.helpers import Fleet, load
from training import schema
from training.checkpoints import load_checkpoint, read_checkpoint
from training.loop import Progress
from utils.errors import UserError
from utils.tensor_files import Damaged

DIGITS = {"in_channels": 1, "size": 16}


def deep() -> list:
    value: list = []
    for _ in range(200):
        value = [value]
    return value


def looped() -> dict:
    value: dict = {}
    value["self"] = value
    return value


HOSTILE: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "negative": lambda: -1,
    "whole float": lambda: 2.0,
    "nan": lambda: float("nan"),
    "infinite": lambda: float("inf"),
    "1e9": lambda: 1e9,
    "huge": lambda: 10**5000,
    "text": lambda: "x\ny",
    "empty text": lambda: "",
    "list": lambda: [1, "a"],
    "empty list": list,
    "dict": lambda: {"a": 1},
    "empty dict": dict,
    "integer keys": lambda: {1: torch.zeros(1)},
    "deep": deep,
    "looped": looped,
    "scalar": lambda: torch.zeros(()),
    "empty tensor": lambda: torch.zeros(0),
    "nan tensor": lambda: torch.full((2, 2), float("nan")),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "bfloat16": lambda: torch.zeros(2, dtype=torch.bfloat16),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(2, 2, device="meta"),
    "expanded": lambda: torch.zeros(1).expand(10**12),
}


def like(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of the same shape that no stage writes."""
    found = {
        "meta": tensor.detach().to("meta"),
        "complex": tensor.detach().to(torch.complex64),
        "sparse": tensor.detach().to_sparse() if tensor.dim() else tensor.detach().to("meta"),
        "shorter": tensor.detach()[:0].clone() if tensor.dim() else torch.zeros(2),
    }
    if tensor.is_floating_point() and tensor.numel():
        for name, value in (("one nan", float("nan")), ("one inf", float("inf"))):
            found[name] = tensor.detach().clone()
            found[name].view(-1)[-1] = value
    return found


def positions(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all entries of nested dicts and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(entries):
        yield (*path, key)
        if isinstance(entry, dict | list):
            yield from positions(entry, (*path, key))


def at(payload: Any, path: tuple) -> Any:
    for key in path:
        payload = payload[key]
    return payload


def replaced(payload: dict, path: tuple, value: Any) -> dict:
    """A copy of the containers of a payload, one entry replaced."""
    root = node = dict(payload)
    for key in path[:-1]:
        node[key] = copy.copy(node[key])
        node = node[key]
    node[path[-1]] = value
    return root


def without(payload: dict, path: tuple) -> dict:
    changed = replaced(payload, path, None)
    del at(changed, path[:-1])[path[-1]]
    return changed


def mutants(payload: dict, *, count: int) -> Iterator[tuple[str, dict]]:
    """A draw of single changes: each is an entry replaced or removed."""
    draw = random.Random(13)
    paths = list(positions(payload))
    # The top levels are few and matter most: every one of them meets every hostile value at least once.
    top = [path for path in paths if len(path) == 1]
    chosen = [(path, name) for path in top for name in HOSTILE]
    chosen += [(draw.choice(paths), draw.choice(list(HOSTILE))) for _ in range(count)]
    for path, name in chosen:
        yield f"{path} {name}", replaced(payload, path, HOSTILE[name]())
    for path in draw.sample(paths, min(len(paths), count // 4)):
        yield f"{path} removed", without(payload, path)
    tensors = [path for path in paths if isinstance(at(payload, path), torch.Tensor)]
    for path in draw.sample(tensors, min(len(tensors), count // 8)):
        for name, value in like(at(payload, path)).items():
            yield f"{path} {name}", replaced(payload, path, value)


def check(use: Callable[[Path], None], payload: dict, path: Path, *, label: str) -> bool:
    """Whether a changed checkpoint is refused, in one line that names it. Anything but a UserError fails."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    path.write_bytes(buffer.getvalue())
    try:
        use(path)
    except UserError as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 2000, f"{label}: {message}"
        return True
    except Exception as error:
        raise AssertionError(f"{label}: {error!r}") from error
    return False


# What reads each kind of checkpoint


def evaluate_target(path: Path, *, channels: int, size: int) -> None:
    build = architecture("lenet5", layers=SHARABLE, in_channels=channels, size=size)
    payload = load_checkpoint(path, architecture="lenet5", layers=SHARABLE, sizes=build.sizes)
    shared = SharedNetwork.from_payload(payload, build=build, source=path)
    for record in shared.tasks:
        assert shared.as_task(record.name)(torch.zeros(1, channels, size, size)).isfinite().all()
        shared.shares(record.name)
    assert 0 <= payload["metrics"]["test_accuracy"] <= 1 if "metrics" in payload else True


def build_plain(*, width: float) -> Any:
    return registry_of(PLAIN)["lenet5"](width=width, **DIGITS)


def continue_run(path: Path, *, approach: str) -> None:
    payload = load_checkpoint(path, architecture="lenet5", layers=PLAIN)
    if payload.get("arguments", {}).get("appr") != approach:
        raise UserError(f"{path} was made with other arguments")
    setup = {"build": build_plain, "total": 3, "settings": Settings()}
    restored = APPROACHES[approach].from_payload(payload, path, **setup)
    for name in restored.tasks:
        assert restored.as_task(name).eval()(torch.zeros(1, 1, 16, 16)).isfinite().all()
    assert sum(entry["epochs"] for entry in restored.history) >= 0
    restored.optimizer()


def sequence_payload(approach: str) -> dict:
    learner = APPROACHES[approach](build=build_plain, total=3, settings=Settings())
    for name in ("zero_one", "two_three"):
        learner.begin_task(name, 2)
    parameters = {name: value.detach().abs() for name, value in learner.feature_parameters().items()}
    if approach == "spg":
        learner.importance = {name: value.tanh() for name, value in parameters.items()}
    elif approach == "er":
        learner.remember(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.arange(4) % 2)
    else:
        learner.fisher, learner.anchors = parameters, parameters
    learner.history = [{"task": "zero_one", "epochs": 3, "seconds": 1.5, "accuracies": [0.5]}]
    accuracies = ("train_accuracy", "validation_accuracy", "test_accuracy")
    return learner.payload() | {
        "format_version": 1,
        "architecture": {"name": "lenet5", "layers": "plain"},
        "arguments": {"appr": approach, "task": "two_three", "stage": "train", "dropout": None},
        "task_table": {"config": "digits_5", "classes": {"zero_one": ["0", "1"]}, "size": 16, "channels": 1},
        "epoch": 3,
        "metrics": dict.fromkeys(accuracies, 0.5),
    }


def test_a_hostile_target_is_refused_or_works(trained_fleet: Fleet, tmp_path: Path) -> None:
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    path = tmp_path / "checkpoint-4.pth.tar"
    entry = payload["task_table"]
    use = partial(evaluate_target, channels=entry["channels"], size=entry["size"])
    assert not check(use, payload, path, label="unchanged")
    refused = [check(use, mutant, path, label=label) for label, mutant in mutants(payload, count=300)]
    assert sum(refused) > 0.7 * len(refused)


@pytest.mark.parametrize("approach", ["spg", "ewc", "er"])
def test_a_hostile_run_on_a_sequence_is_refused_or_works(approach: str, tmp_path: Path) -> None:
    payload = sequence_payload(approach)
    path = tmp_path / "checkpoint-3.pth.tar"
    use = partial(continue_run, approach=approach)
    assert not check(use, payload, path, label="unchanged")
    refused = [check(use, mutant, path, label=label) for label, mutant in mutants(payload, count=150)]
    assert sum(refused) > 0.7 * len(refused)


def test_a_hostile_resume_file_is_refused_or_works(unfinished: Callable[[], Path], tmp_path: Path) -> None:
    payload = load(unfinished())
    path = tmp_path / "resume.pth.tar"

    def use(path: Path) -> None:
        found = load_checkpoint(path, architecture="lenet5", layers=PLAIN)
        if "progress" in found:
            progress = Progress(**found["progress"])
            assert len(progress.history) == progress.epoch
            progress.generator.cpu()

    assert not check(use, payload, path, label="unchanged")
    refused = [check(use, mutant, path, label=label) for label, mutant in mutants(payload, count=150)]
    assert sum(refused) > 0.6 * len(refused)


# Fields that were accepted in silence, or ended in a traceback


def of_task(group: str, value: Any) -> Callable[[dict], dict]:
    return lambda payload: replaced(payload, ("shared_layer_info", "zero_one", group), value)


def entry(value: Any, *path: str) -> Callable[[dict], dict]:
    return lambda payload: replaced(payload, path, value)


REFUSED = {
    "version 1.5": (entry(1.5, "format_version"), "format_version is 1.5"),
    "architecture": (entry("lenet5", "architecture"), "architecture is 'lenet5'"),
    "layers": (entry("odd", "architecture", "layers"), "architecture['layers'] is 'odd'"),
    "task twice": (entry(["zero_one", "zero_one"], "dataset_history"), "names a task twice"),
    "classes 2.0": (entry(2.0, "dataset2num_classes", "zero_one"), "dataset2num_classes['zero_one'] is 2.0"),
    "classes true": (entry(True, "dataset2num_classes", "zero_one"), "dataset2num_classes['zero_one']"),
    "width x": (of_task("network_width_multiplier", "x"), "['network_width_multiplier'] is 'x'"),
    "width inf": (of_task("network_width_multiplier", float("inf")), "['network_width_multiplier'] is inf"),
    "width 1e9": (of_task("network_width_multiplier", 1e9), "['network_width_multiplier'] is 1000000000.0"),
    "modality": (of_task("modality", "sound"), "['modality'] is 'sound'"),
    "group": (of_task("bias", [1]), "['bias'] is of type list"),
    "epoch": (entry(-1, "epoch"), "epoch is -1"),
    "accuracy 99.5": (entry(99.5, "metrics", "test_accuracy"), "metrics['test_accuracy'] is 99.5"),
    "accuracy nan": (entry(float("nan"), "metrics", "test_accuracy"), "metrics['test_accuracy'] is nan"),
    "arguments": (entry(torch.zeros(2), "arguments", "lr"), "arguments['lr'] is of type Tensor"),
    "arrivals": (entry({"fish": 1}, "arrivals"), "arrivals['fish'] is 1"),
    "progress": (entry({}, "progress"), "progress['epoch'] is missing"),
}


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_field_is_named(
    change: Callable[[dict], dict], named: str, trained_fleet: Fleet, tmp_path: Path
) -> None:
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    path = tmp_path / "checkpoint-4.pth.tar"
    torch.save(change(payload), path)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert f"{path} is damaged: " in str(caught.value) and named in str(caught.value)


@pytest.mark.parametrize("version", [2, 5000, 10**9])
def test_a_newer_format_is_refused_but_not_called_damaged(
    version: int, trained_fleet: Fleet, tmp_path: Path
) -> None:
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    path = tmp_path / "checkpoint-4.pth.tar"
    torch.save(payload | {"format_version": version, "dataset_history": ["other"]}, path)
    with pytest.raises(UserError, match=f"has format {version}; .*: update") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["model_state_dict", "private"])
def test_weights_that_are_not_finite_are_named(
    part: str, value: float, trained_fleet: Fleet, tmp_path: Path
) -> None:
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    tensors, name = payload["model_state_dict"], "features.9.weight"
    if part == "private":
        tensors, name = payload["shared_layer_info"]["zero_one"]["bn_layer_weight"], "features.1"
    tensors[name].view(-1)[3] = value
    path = tmp_path / "checkpoint-4.pth.tar"
    torch.save(payload, path)
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and f"[{name!r}]" in str(caught.value)


@pytest.mark.parametrize(
    ("approach", "path", "value", "named"),
    [
        ("spg", ("importance", "0.weight"), torch.full((6, 1, 5, 5), 1.5), "outside 0 to 1"),
        ("spg", ("importance",), {}, "importance does not fit"),
        ("spg", ("importance", "0.weight"), torch.zeros(3), "has the shape (3,)"),
        ("spg", ("sequence",), {}, "sequence['past']"),
        ("spg", ("shared_layer_info", "zero_one", "0.weight"), torch.zeros(3), "does not fit the network"),
        ("spg", ("sequence", "past", 0, "accuracies"), [0.5, 0.5], "expected a list of 1"),
        ("spg", ("sequence", "seconds"), float("nan"), "sequence['seconds'] is nan"),
        ("ewc", ("fisher", "0.weight"), torch.full((6, 1, 5, 5), -1.0), "outside 0 to inf"),
        ("er", ("buffer", "labels"), torch.tensor([0, 1, 2, 0]), "a class that its task does not have"),
        ("er", ("buffer", "tasks"), torch.tensor([0, 1, 2, 0]), "outside 0 to 1"),
        ("er", ("buffer", "keys"), torch.zeros(3), "one value for each input"),
        ("er", ("sequence", "bytes"), -1, "sequence['bytes'] is -1"),
        ("ewc", ("anchors", "0.weight"), torch.zeros(6, dtype=torch.int64), "has the type torch.int64"),
    ],
)
def test_a_wrong_field_of_a_run_on_a_sequence_is_named(
    approach: str, path: tuple, value: Any, named: str, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint-3.pth.tar"
    torch.save(replaced(sequence_payload(approach), path, value), file)
    with pytest.raises(UserError) as caught:
        read_checkpoint(file)
    assert str(file) in str(caught.value) and named in str(caught.value)


def test_a_piggymask_of_another_shape_is_named(trained_fleet: Fleet, tmp_path: Path) -> None:
    """An earlier task's piggymasks are used only when the network is evaluated as that task."""
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    entry = payload["task_table"]
    build = architecture("lenet5", layers=SHARABLE, in_channels=entry["channels"], size=entry["size"])
    path = tmp_path / "checkpoint-4.pth.tar"
    shared = SharedNetwork.from_payload(payload, build=build, source=path)
    shared.begin_task("six_seven", num_classes=2)
    grown = shared.payload()
    assert len(SharedNetwork.from_payload(grown, build=build, source=path).tasks) == 3
    masks = grown["shared_layer_info"]["four_five"]["piggymask"]
    for hostile in ({"features.0": torch.ones(2, dtype=torch.bool)}, {"features.99": torch.ones(2)}):
        changed = replaced(grown, ("shared_layer_info", "four_five", "piggymask"), masks | hostile)
        with pytest.raises(UserError, match=r"the piggymask features\..* of task four_five") as caught:
            SharedNetwork.from_payload(changed, build=build, source=path)
        assert str(path) in str(caught.value)


def test_the_known_modalities_are_those_of_the_tables() -> None:
    assert schema.MODALITIES == tables.MODALITIES
    assert schema.LAYERS == (PLAIN, SHARABLE)
