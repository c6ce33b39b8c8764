"""What a checkpoint may hold, field by field. Checked once, when it is read.

The reader (`utils.tensor_files`) lets through any tensors, numbers, strings and containers of them. What
follows here guards the rest of the project against types, shapes and values that no stage ever wrote.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# As in `data.tables`, from which this folder may not import.
MODALITIES = ("image", "text")
LAYERS = ("plain", "sharable")

_FLOATS = (torch.float16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_COUNT = 10**9
_MAX_WIDTH = 100.0
_MAX_DEPTH = 8
_MAX_NAME = 255

# Buffers of batch norms: not parameters, so no method weighs them.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")
_PROGRESS = {"epoch", "history", "optimizers", "generator", "random"}
_OPTIONAL_PROGRESS = {"method", "schedules", "best", "best_figure", "best_epoch"}


class Invalid(ValueError):
    """A field has a value that no stage writes. The message names the field."""


def check_payload(payload: Mapping[str, Any]) -> None:
    """Check everything that the project reads from a checkpoint, ours or a published one.

    Raises:
        Invalid: naming the first wrong field.
    """
    _count(payload.get("format_version", 0), "format_version")
    _check_network(payload)
    for name, check in _SECTIONS.items():
        if name in payload:
            check(payload[name], name)
    _check_importance(payload)
    _check_buffer(payload)
    approach = payload.get("arguments", {}).get("appr")
    required = () if approach is None else ("sequence", *_STATE_OF.get(str(approach), ()))
    for name in required:
        if name not in payload:
            raise Invalid(f"{name} is missing")
    if "progress" in payload:
        _progress(payload["progress"], "progress")
        if payload.get("epoch") != payload["progress"]["epoch"]:
            raise Invalid("epoch differs from progress['epoch']")
        if "arguments" not in payload:
            raise Invalid("arguments is missing")


def _check_network(payload: Mapping[str, Any]) -> None:
    history, counts = payload["dataset_history"], payload["dataset2num_classes"]
    for number, name in enumerate(history):
        _text(name, f"dataset_history[{number}]")
    if not history:
        raise Invalid("dataset_history holds no task")
    if len({*history}) < len(history):
        raise Invalid("dataset_history names a task twice")
    state = payload["model_state_dict"]
    _tensors(state, "model_state_dict")
    _tensors(payload["masks"], "masks", dtypes=(*_WHOLE, *_FLOATS))
    information = payload["shared_layer_info"]
    grouped = bool(payload["masks"]) or "sequence" not in payload
    for number, name in enumerate(history):
        for part in ("dataset2num_classes", "shared_layer_info"):
            if name not in payload[part]:
                raise Invalid(f"dataset_history lists task {name}, but the file lacks its entry in {part}")
        _count(counts[name], f"dataset2num_classes[{_brief(name)}]", least=1)
        where = f"shared_layer_info[{_brief(name)}]"
        _task_information(information[name], where, state=state, grouped=grouped)
        head = state.get(f"classifiers.{number}.weight")
        if head is None:
            raise Invalid(f"no head for task {name} (classifiers.{number}.weight)")
        if head.dim() != 2:
            raise Invalid(f"the head of task {name} has {head.dim()} dimensions, expected 2")
        if len(head) != counts[name]:
            raise Invalid(
                f"the head of task {name} has {len(head)} classes, "
                f"its entry in dataset2num_classes says {counts[name]}"
            )


def _task_information(value: Any, field: str, *, state: Mapping[str, Tensor], grouped: bool) -> None:
    """One task's private tensors: by group and layer if tasks own weights, else by name, as in `state`."""
    if not grouped:
        _tensors(value, field)
        for name, tensor in value.items():
            expected = state.get(f"features.{name}")
            if expected is None or expected.shape != tensor.shape:
                raise Invalid(f"{field}[{_brief(name)}] does not fit the network")
        return
    for name, entry in _dict(value, field).items():
        where = f"{field}[{_brief(name)}]"
        if name == "network_width_multiplier":
            if not (_is_number(entry) and 0 < entry <= _MAX_WIDTH):
                raise Invalid(f"{where} is {_brief(entry)}, expected more than 0 and at most {_MAX_WIDTH:g}")
        elif name == "modality":
            _choice(entry, where, MODALITIES)
        else:
            _tensors(entry, where)


def _architecture(value: Any, field: str) -> None:
    _dict(value, field)
    _text(value.get("name"), f"{field}['name']")
    _choice(value.get("layers"), f"{field}['layers']", LAYERS)
    _text(value.get("file", "none"), f"{field}['file']")
    sizes = _dict(value.get("sizes", {}), f"{field}['sizes']")
    for name, size in sizes.items():
        if not (size is None or isinstance(size, bool | str) or (_is_number(size) and abs(size) < MAX_COUNT)):
            raise Invalid(f"{field}['sizes'][{_brief(name)}] is {_brief(size)}, expected a number or a name")


def check_exported(state: Any, card: Any) -> None:
    """Check the content of a file that tools.export_task wrote, except the names of the state dict.

    Raises:
        Invalid: naming the first wrong field.
    """
    _tensors(state, "state_dict")
    _dict(card, "card")
    _architecture(card.get("architecture"), "card['architecture']")
    _choice(card.get("modality"), "card['modality']", MODALITIES)
    for name in ("in_channels", "size"):
        _count(card.get(name), f"card['{name}']", least=1)
    width = card.get("width")
    if not (_is_number(width) and 0 < width <= _MAX_WIDTH):
        raise Invalid(f"card['width'] is {_brief(width)}, expected more than 0 and at most {_MAX_WIDTH:g}")
    classes, head = card.get("classes"), state.get("classifiers.0.weight")
    if not isinstance(classes, list) or head is None or head.dim() != 2 or len(head) != len(classes):
        raise Invalid("card['classes'] does not fit the head, classifiers.0.weight")
    for number, name in enumerate(classes):
        _text(name, f"card['classes'][{number}]")


def _metrics(value: Any, field: str) -> None:
    _dict(value, field)
    for name in sorted({*_ACCURACIES, *value}):
        _share(value.get(name), f"{field}[{_brief(name)}]")


def _selection(value: Any, field: str) -> None:
    _plain(_dict(value, field), field)
    for name in sorted({"ratio", "accuracy", "baseline", "test_accuracy"} & value.keys()):
        _share(value[name], f"{field}[{_brief(name)}]")
    if "recipe" in value:
        _dict(value["recipe"], f"{field}['recipe']")
    if "width_multiplier" in value:
        width = value["width_multiplier"]
        if not (_is_number(width) and 0 < width <= _MAX_WIDTH**2):
            raise Invalid(f"{field}['width_multiplier'] is {_brief(width)}, expected a positive number")


def _task_table(value: Any, field: str) -> None:
    _plain(_dict(value, field), field)
    for name in sorted({"config", "name", "text_encoder"} & value.keys()):
        _text(value[name], f"{field}[{_brief(name)}]")
    for name in sorted({"size", "channels", "max_tokens"} & value.keys()):
        _count(value[name], f"{field}[{_brief(name)}]", least=1)
    for name in sorted({"mean", "std"} & value.keys()):
        numbers = value[name]
        if not (isinstance(numbers, list) and all(map(_is_number, numbers))):
            raise Invalid(f"{field}[{_brief(name)}] is {_brief(numbers)}, expected finite numbers")
    if "modality" in value:
        _choice(value["modality"], f"{field}['modality']", MODALITIES)
    by_task = value.get("classes", [])
    for classes in by_task.values() if isinstance(by_task, dict) else [by_task]:
        if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise Invalid(f"{field}['classes'] is {_brief(classes)}, expected names")


def _arrived_from(value: Any, field: str) -> None:
    _dict(value, field)
    _task_table(value.get("task_table", {}), f"{field}['task_table']")
    if not isinstance(value.get("in_layout", False), bool):
        raise Invalid(f"{field}['in_layout'] is {_brief(value['in_layout'])}, expected true or false")


def _arrivals(value: Any, field: str) -> None:
    for task, tensors in _dict(value, field).items():
        _tensors(tensors, f"{field}[{_brief(task)}]")


def _sequence(value: Any, field: str) -> None:
    """SPG's record of the run so far: the accuracies after each earlier task, and the newest task's cost."""
    _dict(value, field)
    past = value.get("past")
    if not isinstance(past, list):
        raise Invalid(f"{field}['past'] is {_brief(past)}, expected a list")
    _cost(value, field)
    for number, entry in enumerate(past):
        where = f"{field}['past'][{number}]"
        _dict(entry, where)
        _text(entry.get("task"), f"{where}['task']")
        _cost(entry, where)
        accuracies = entry.get("accuracies")
        if not isinstance(accuracies, list) or len(accuracies) != number + 1:
            raise Invalid(f"{where}['accuracies'] is {_brief(accuracies)}, expected a list of {number + 1}")
        for accuracy in accuracies:
            _share(accuracy, f"{where}['accuracies']")


def _cost(value: Mapping, field: str) -> None:
    _count(value.get("epochs"), f"{field}['epochs']")
    # Earlier versions do not record the bytes.
    for name in ("seconds", *({"bytes"} & value.keys())):
        if not (_is_number(value.get(name)) and value[name] >= 0):
            raise Invalid(f"{field}['{name}'] is {_brief(value.get(name))}, expected 0 or more")


def _check_importance(payload: Mapping[str, Any]) -> None:
    """Per-parameter tensors of SPG and EWC: one per feature parameter, with its shape."""
    state = payload["model_state_dict"]
    shapes = {
        name.removeprefix("features."): value.shape
        for name, value in state.items()
        if name.startswith("features.") and name.rpartition(".")[2] not in _STATISTICS
    }
    for field, (least, most) in _PER_PARAMETER.items():
        if field not in payload:
            continue
        tensors = payload[field]
        _tensors(tensors, field, dtypes=_FLOATS)
        if not tensors and "metrics" not in payload:  # the first task, unfinished
            continue
        odd = sorted(tensors.keys() ^ shapes.keys())
        if odd:
            raise Invalid(f"{field} does not fit the network's parameters: {_brief(odd[0])}")
        for name, value in tensors.items():
            where, shape = f"{field}[{_brief(name)}]", tuple(shapes[name])
            if value.shape != shape:
                raise Invalid(f"{where} has the shape {tuple(value.shape)}, expected {shape}")
            if value.numel() and not (value.min() >= least and value.max() <= most):
                raise Invalid(f"{where} has values outside {least:g} to {most:g}")


def _check_buffer(payload: Mapping[str, Any]) -> None:
    """The samples that experience replay keeps: one label, task and key for each input."""
    buffer = payload.get("buffer", {})
    _tensors(buffer, "buffer")
    if not buffer:
        return
    missing = sorted({"inputs", "labels", "tasks", "keys"} ^ buffer.keys())
    if missing:
        raise Invalid(f"buffer['{missing[0]}'] is missing or unknown")
    counts = torch.tensor([payload["dataset2num_classes"][name] for name in payload["dataset_history"]])
    for name in ("labels", "tasks", "keys"):
        value, dtypes = buffer[name], _FLOATS if name == "keys" else (torch.int64,)
        _dense(value, f"buffer['{name}']", dtypes=dtypes)
        if value.shape != buffer["inputs"].shape[:1] or not len(value):
            raise Invalid(f"buffer['{name}'] does not have one value for each input")
    labels, tasks = buffer["labels"], buffer["tasks"]
    if tasks.min() < 0 or tasks.max() >= len(counts):
        raise Invalid(f"buffer['tasks'] has values outside 0 to {len(counts) - 1}")
    if labels.min() < 0 or (labels >= counts[tasks]).any():
        raise Invalid("buffer['labels'] names a class that its task does not have")


def _progress(value: Any, field: str) -> None:
    names = _dict(value, field).keys()
    for name in sorted(_PROGRESS - names):
        raise Invalid(f"{field}[{_brief(name)}] is missing")
    for name in sorted(names - _PROGRESS - _OPTIONAL_PROGRESS):
        raise Invalid(f"{field} has an unknown entry {_brief(name)}")
    _count(value["epoch"], f"{field}['epoch']", least=1)
    history = value["history"]
    if not isinstance(history, list) or len(history) != value["epoch"]:
        raise Invalid(f"{field}['history'] is {_brief(history)}, expected an entry per epoch")
    for number, row in enumerate(history):
        where = f"{field}['history'][{number}]"
        missing = {"epoch", "loss", "accuracy", "lr", "val_loss", "val_accuracy"} - _dict(row, where).keys()
        odd = [name for name, entry in row.items() if not (entry is None or _is_number(entry))]
        if missing or odd:
            raise Invalid(f"{where} lacks a finite number: {', '.join(sorted(map(str, [*missing, *odd])))}")
    _optimizers(value["optimizers"], f"{field}['optimizers']")
    _generator(value["generator"], f"{field}['generator']")
    random = _dict(value["random"], f"{field}['random']")
    for name in sorted({"cpu", *random}):
        _generator(random.get(name), f"{field}['random'][{_brief(name)}]")
    _dict(value.get("method", {}), f"{field}['method']")
    for name, state in _dict(value.get("schedules", {}), f"{field}['schedules']").items():
        where = f"{field}['schedules'][{_brief(name)}]"
        if name not in value["optimizers"]:
            raise Invalid(f"{where} belongs to no optimizer")
        for key, entry in _dict(state, where).items():
            if not (_is_number(entry) or isinstance(entry, bool) or _is_infinite(entry)):
                raise Invalid(f"{where}[{_brief(key)}] is {_brief(entry)}, expected a number")
    if value.get("best") is not None:
        _tensors(value["best"], f"{field}['best']")
    best = value.get("best_figure", math.inf)
    if not (_is_number(best) or _is_infinite(best)):
        raise Invalid(f"{field}['best_figure'] is {_brief(best)}, expected a number")
    _count(value.get("best_epoch", 0), f"{field}['best_epoch']")


def _optimizers(value: Any, field: str) -> None:
    if "weights" not in _dict(value, field):
        raise Invalid(f"{field}['weights'] is missing")
    for name, state in value.items():
        where = f"{field}[{_brief(name)}]"
        if not {"state", "param_groups"} <= _dict(state, where).keys():
            raise Invalid(f"{where} lacks state or param_groups")
        for number, entries in _dict(state["state"], f"{where}['state']", keys=int).items():
            for key, entry in _dict(entries, f"{where}['state'][{_brief(number)}]").items():
                if isinstance(entry, Tensor):
                    # Not checked for NaN: the next epoch shows a diverged loss.
                    _dense(entry, f"{where}['state'][{_brief(number)}][{_brief(key)}]")
                elif not (entry is None or _is_number(entry)):
                    raise Invalid(f"{where}['state'][{_brief(number)}][{_brief(key)}] is {_brief(entry)}")
        groups = state["param_groups"]
        if not isinstance(groups, list):
            raise Invalid(f"{where}['param_groups'] is {_brief(groups)}, expected a list")
        for group in groups:
            _plain(_dict(group, f"{where}['param_groups']"), f"{where}['param_groups']")
            if not isinstance(group.get("params"), list):
                raise Invalid(f"{where}['param_groups'] lacks params")


def _generator(value: Any, field: str) -> None:
    if not isinstance(value, Tensor):
        raise Invalid(f"{field} is {_brief(value)}, expected a generator's state")
    _tensor(value, field, dtypes=(torch.uint8,))


# Values


def _tensors(value: Any, field: str, *, dtypes: Iterable[torch.dtype] | None = None) -> None:
    for name, tensor in _dict(value, field).items():
        where = f"{field}[{_brief(name)}]"
        if not isinstance(tensor, Tensor):
            raise Invalid(f"{where} is {_brief(tensor)}, expected a tensor")
        _tensor(tensor, where, dtypes=dtypes)


def _dense(value: Tensor, field: str, *, dtypes: Iterable[torch.dtype] | None = None) -> None:
    allowed = (*_FLOATS, *_WHOLE, torch.bool) if dtypes is None else dtypes
    # Sparse, quantized, meta and nested tensors load without an error, and fail wherever they are used.
    if (
        type(value) not in (Tensor, nn.Parameter)
        or value.layout != torch.strided
        or value.is_nested
        or value.device.type != "cpu"
    ):
        raise Invalid(f"{field} is not a dense tensor")
    if value.dtype not in allowed:
        raise Invalid(f"{field} has the type {value.dtype}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Invalid(f"{field} has the shape {tuple(value.shape)}, but fewer values")


def _tensor(value: Tensor, field: str, *, dtypes: Iterable[torch.dtype] | None = None) -> None:
    _dense(value, field, dtypes=dtypes)
    if value.dtype in _FLOATS and value.numel():
        # One pass without a temporary tensor; NaN propagates to both.
        bounds = torch.stack(torch.aminmax(value.detach()))
        if not bounds.isfinite().all():
            raise Invalid(f"{field} has values that are NaN or infinite")


def _plain(value: Any, field: str, *, depth: int = 0) -> None:
    """Check that a value consists of numbers, strings, lists and dicts, as a JSON file does."""
    if depth > _MAX_DEPTH:
        raise Invalid(f"{field} is nested too deeply")
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                raise Invalid(f"{field} has the key {_brief(name)}, expected a name")
            _plain(entry, f"{field}[{_brief(name)}]", depth=depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            _plain(entry, field, depth=depth + 1)
    elif isinstance(value, int) and abs(value) > 2**64:
        raise Invalid(f"{field} is too large a number")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise Invalid(f"{field} is {_brief(value)}, expected a number, a string or a list of them")


def _plain_dict(value: Any, field: str) -> None:
    _plain(_dict(value, field), field)


def _dict(value: Any, field: str, *, keys: type = str) -> dict:
    if not isinstance(value, dict):
        raise Invalid(f"{field} is {_brief(value)}, expected a dict")
    for name in value:
        if not isinstance(name, keys):
            raise Invalid(f"{field} has the key {_brief(name)}, expected a {keys.__name__}")
    return value


def _text(value: Any, field: str) -> None:
    if not (isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()):
        raise Invalid(f"{field} is {_brief(value)}, expected a name")


def _choice(value: Any, field: str, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise Invalid(f"{field} is {_brief(value)}, expected {' or '.join(known)}")


def _count(value: Any, field: str, *, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_COUNT:
        raise Invalid(f"{field} is {_brief(value)}, expected a whole number from {least} to {MAX_COUNT}")


def _share(value: Any, field: str) -> None:
    if not (_is_number(value) and 0 <= value <= 1):
        raise Invalid(f"{field} is {_brief(value)}, expected 0 to 1")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 2**64 if isinstance(value, int) else math.isfinite(value)


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and value == math.inf


def _brief(value: Any) -> str:
    """A value for a message, on one line and of bounded length."""
    if isinstance(value, bool | float | None):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a huge number"
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "…")
    return f"of type {type(value).__name__}"


# Bounds of the tensors that a method keeps per parameter.
_PER_PARAMETER = {
    "importance": (0.0, 1.0),
    "fisher": (0.0, math.inf),
    "anchors": (-math.inf, math.inf),
}

# What these approaches to a sequence of tasks keep besides the network.
_STATE_OF = {"spg": ("importance",), "ewc": ("fisher", "anchors"), "er": ("buffer",)}

# Sections of our own checkpoints; published ones have none of them.
_SECTIONS: dict[str, Callable[[Any, str], None]] = {
    "architecture": _architecture,
    "arguments": _plain_dict,
    "task_table": _task_table,
    "epoch": lambda value, field: _count(value, field),
    "metrics": _metrics,
    "selection": _selection,
    "arrivals": _arrivals,
    "kv_transfer": _plain_dict,
    "arrived_from": _arrived_from,
    "sequence": _sequence,
}
