"""Weight ownership: which task owns which weight of a shared network.

Every weight of every convolution and linear layer of the backbone has an owner: 0 is free, k is task k.
All other tensors of the backbone (biases, norms, running statistics, the weights of a `PrivateLinear`) are
private: each task has its own copy. `SharedNetwork` holds one network with its owners and the private
copies of all its tasks. Nothing else in the project changes owners.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.layers import PICK_THRESHOLD, PrivateLinear, SharableConv2d, SharableLinear
from models.network import Network
from training.method import Method
from utils.errors import UserError

PIGGYMASK_INIT = 0.01

# Owners are uint8, and 0 is free.
MAX_TASKS = 255

# Groups of a task's private tensors in the published checkpoints: group → (layer types, tensor name).
_GROUPS = {
    "bias": ((nn.Conv2d, nn.Linear), "bias"),
    "bn_layer_running_mean": ((nn.modules.batchnorm._BatchNorm,), "running_mean"),
    "bn_layer_running_var": ((nn.modules.batchnorm._BatchNorm,), "running_var"),
    "bn_layer_weight": ((nn.modules.batchnorm._BatchNorm,), "weight"),
    "bn_layer_bias": ((nn.modules.batchnorm._BatchNorm,), "bias"),
    "prelu_layer_weight": ((nn.PReLU,), "weight"),
}
_PUBLISHED_BIAS_GROUPS = ("conv_bias", "fc_bias")


@dataclass
class TaskRecord:
    """Everything that belongs to one task alone.

    Attributes:
        name: Name of the task.
        num_classes: Number of classes of its head.
        width: √(width multiplier) of the network when the task was learned (`mpl` in logs).
        private: State name → this task's copy, at this task's width.
        piggymasks: Layer name → mask over earlier tasks' weights, at this task's width. Real-valued for the
            newest task, which trains it; once another task has begun, bool (the weights it picks).
        modality: Modality of its inputs.
    """

    name: str
    num_classes: int
    width: float = 1.0
    private: dict[str, Tensor] = field(default_factory=dict)
    piggymasks: dict[str, Tensor] = field(default_factory=dict)
    modality: str = "image"


@dataclass(frozen=True)
class Shares:
    """Shares of a network's weights, as seen by task `index` at its own width.

    Attributes:
        sparsity: free / (free + owned by the task).
        task_ratio: Share of weights owned by the task, times the width multiplier.
        zero_ratio: Share of free weights, times the width multiplier.
        shared_ratio: Share of earlier tasks' weights that the task picks.
        width: √(width multiplier) of the task (`mpl` in logs).
    """

    index: int
    sparsity: float
    task_ratio: float
    zero_ratio: float
    shared_ratio: float
    width: float


class SharedNetwork:
    """One network, the owners of its weights, and the tasks that own them.

    `network` is always set up for the newest task. `as_task` gives the network as an earlier task sees it.

    Args:
        build: Builds the architecture, `build(width=…)`.
        width: √(width multiplier).

    Attributes:
        tasks: In the order in which they were learned.
        arrivals: Task to be learned → state name → the private tensor that it starts from.
    """

    def __init__(self, *, build: Callable[..., Network], width: float = 1.0) -> None:
        self.build = build
        self.width = width
        self.network = build(width=width)
        self.tasks: list[TaskRecord] = []
        self.arrivals: dict[str, dict[str, Tensor]] = {}
        for layer in self.layers().values():
            layer.register_buffer(
                "owner", torch.zeros_like(layer.weight, dtype=torch.uint8), persistent=False
            )

    # Layers and owners.

    def layers(self) -> dict[str, nn.Module]:
        """Layer name → layer, for all layers whose weights are owned."""
        return _owned_layers(self.network)

    def owners(self) -> dict[str, Tensor]:
        """Layer name → uint8 owner of every weight."""
        return {name: layer.owner for name, layer in self.layers().items()}

    def index_of(self, task: str) -> int:
        """The number of `task`, counted from 1.

        Raises:
            UserError: The network has not learned it.
        """
        names = [record.name for record in self.tasks]
        if task not in names:
            raise UserError(f"the network holds no task {task}: it holds {', '.join(names) or 'none'}")
        return names.index(task) + 1

    def owned_shares(self) -> dict[str, float]:
        """Task name → share of all weights that it owns."""
        owners = torch.cat([owner.flatten() for owner in self.owners().values()])
        counts = owners.bincount(minlength=len(self.tasks) + 1).tolist()
        return {record.name: counts[number] / len(owners) for number, record in enumerate(self.tasks, 1)}

    def to(self, device: torch.device) -> "SharedNetwork":
        """Move everything to `device`."""
        self.network.to(device)
        for record in self.tasks:
            record.private = {name: value.to(device) for name, value in record.private.items()}
            record.piggymasks = {name: value.to(device) for name, value in record.piggymasks.items()}
        for task, tensors in self.arrivals.items():
            self.arrivals[task] = {name: value.to(device) for name, value in tensors.items()}
        return self

    # Learning a task.

    def begin_task(
        self, name: str, *, num_classes: int, width: float | None = None, modality: str = "image"
    ) -> TaskRecord:
        """Prepare the network for a new task: grow to `width`, add a head, claim every free weight.

        Earlier tasks' weights get piggymasks if the layers are sharable. The private tensors start from
        `arrivals[name]` where it has them and otherwise from the newest task's. Weights added by growth
        start at random values, weights freed by pruning at 0.

        Args:
            width: √(width multiplier); None keeps the width.

        Raises:
            UserError: The network has already learned the task, or `MAX_TASKS` tasks; cannot read its
                modality; would have to shrink; or the tensors in `arrivals[name]` do not fit.
        """
        if modality not in self.network.modalities:
            raise UserError(
                f"task {name} has {modality} inputs, and the network reads "
                f"{' and '.join(self.network.modalities)} only: choose another --arch or --dataset"
            )
        if any(record.name == name for record in self.tasks):
            raise UserError(f"the network has already learned task {name}: choose another backbone or target")
        if len(self.tasks) == MAX_TASKS:
            raise UserError(
                f"the network has learned {MAX_TASKS} tasks, and holds no more: choose another one"
            )
        self.snapshot()
        for record in self.tasks[-1:]:  # a quarter of the size, in memory and in every later checkpoint
            record.piggymasks = {layer: _picked(mask) for layer, mask in record.piggymasks.items()}
        device = next(self.network.parameters()).device
        if width is not None and width != self.width:
            self._grow(width)
        self._receive(name)
        index = len(self.tasks) + 1
        self.network.modality = modality
        self.network.add_head(num_classes)
        for layer in self.layers().values():
            earlier = layer.owner > 0
            layer.owner.masked_fill_(layer.owner == 0, index)
            _remove_piggymask(layer)
            if index > 1 and isinstance(layer, SharableConv2d | SharableLinear):
                layer.add_piggymask(torch.full_like(layer.weight, PIGGYMASK_INIT), earlier=earlier)
        record = TaskRecord(name=name, num_classes=num_classes, width=self.width, modality=modality)
        self.tasks.append(record)
        self.network.to(device)
        return record

    def snapshot(self) -> None:
        """Store the newest task's private tensors and piggymasks in its record."""
        if not self.tasks:
            return
        record = self.tasks[-1]
        record.private = {name: value.clone() for name, value in _private_state(self.network).items()}
        record.piggymasks = {
            name: layer.piggymask.detach().clone()
            for name, layer in self.layers().items()
            if getattr(layer, "piggymask", None) is not None
        }

    @torch.no_grad()
    def release(self, released: Mapping[str, Tensor]) -> None:
        """Free the weights in `released` (layer name → bool mask): they become 0 and have no owner.

        Never waits for the device.
        """
        for name, layer in self.layers().items():
            layer.owner.masked_fill_(released[name], 0)
            layer.weight.masked_fill_(released[name], 0.0)

    @torch.no_grad()
    def _receive(self, task: str) -> None:
        """Overwrite the network's private tensors with those that have arrived for `task`."""
        private = _private_state(self.network)
        for name, value in self.arrivals.pop(task, {}).items():
            if name not in private or private[name].shape != value.shape:
                raise UserError(
                    f"a tensor transferred for task {task} does not fit the network: "
                    f"{name} {tuple(value.shape)}: transfer it from a network of the same sizes"
                )
            private[name].copy_(value)  # shares memory with the network's tensor

    def _grow(self, width: float) -> None:
        if width < self.width:
            raise UserError(f"a network of width {self.width} cannot be made narrower ({width})")
        old = self.network
        grown = SharedNetwork(build=self.build, width=width)
        state = grown.network.features.state_dict()
        for name, value in old.features.state_dict().items():
            if name in state:
                layer = grown.network.features.get_submodule(name.rpartition(".")[0])
                state[name][_region(state[name], value, layer=layer)] = value.to(state[name].device)
        grown.network.features.load_state_dict(state)
        for name, layer in grown.layers().items():
            owner = self.layers()[name].owner
            layer.owner[_region(layer.owner, owner, layer=layer)] = owner.to(layer.owner.device)
        grown.network.classifiers = old.classifiers
        self.network, self.width = grown.network, width

    # The network as one task sees it.

    @torch.no_grad()
    def as_task(self, task: str) -> Network:
        """A dense network in evaluation mode that computes `task`'s logits, at the task's own width.

        Its weights are those of owner k (the task) and, of owners 1 to k − 1, those that the task's
        piggymasks pick. All others are 0.
        """
        self.snapshot()
        index = self.index_of(task)
        record = self.tasks[index - 1]
        head = self.network.classifiers[index - 1]
        with torch.random.fork_rng(devices=[]):  # a view must not advance the random generator
            seen = self.build(width=record.width)
            seen.add_head(record.num_classes, in_features=head.in_features)
        seen.modality = record.modality
        seen.classifiers[0].load_state_dict(head.state_dict())
        seen.to(next(self.network.parameters()).device)
        state = seen.state_dict()
        layers = self.layers()
        for name, layer in _owned_layers(seen).items():
            region = _region(layers[name].weight, layer.weight, layer=layer)
            owner = layers[name].owner[region]
            visible = (owner > 0) & (owner <= index)
            if name in record.piggymasks:
                visible &= (owner == index) | _picked(record.piggymasks[name])
            # Not a product with the mask, which would let through a NaN in a later task's weight.
            state[f"{name}.weight"] = layers[name].weight[region].where(visible, 0.0)
        state.update(record.private)
        seen.load_state_dict(state)
        return seen.eval()

    def owners_as(self, task: str) -> dict[str, Tensor]:
        """Layer name → uint8 owner of every weight that exists at the width of `task`."""
        record = self.tasks[self.index_of(task) - 1]
        layers = self.layers()
        sized = layers if record.width == self.width else _owned_layers(_blueprint(self.build, record.width))
        return {
            name: layer.owner[_region(layer.owner, sized[name].weight, layer=layer)]
            for name, layer in layers.items()
        }

    def shares(self, task: str) -> Shares:
        """The shares of weights that are free, owned and picked, as `task` sees them at its own width."""
        self.snapshot()
        index = self.index_of(task)
        record = self.tasks[index - 1]
        total = 0
        counts = []
        for name, owner in self.owners_as(task).items():
            total += owner.numel()
            before = (owner > 0) & (owner < index)
            seen = before & _picked(record.piggymasks[name]) if name in record.piggymasks else before
            counts += [mask.sum() for mask in (owner == 0, owner == index, before, seen)]
        # One wait for the device instead of four per layer.
        free, owned, earlier, picked = torch.stack(counts).view(-1, 4).sum(dim=0).tolist()
        multiplier = record.width**2
        return Shares(
            index=index,
            sparsity=free / max(free + owned, 1),
            task_ratio=owned / total * multiplier,
            zero_ratio=free / total * multiplier,
            shared_ratio=picked / max(earlier, 1),
            width=record.width,
        )

    # Checkpoints, in the published format.

    def payload(self) -> dict:
        """The network's part of a checkpoint (`docs/design.md`, "Checkpoints")."""
        self.snapshot()
        return {
            "model_state_dict": dict(self.network.state_dict()),
            "dataset_history": [record.name for record in self.tasks],
            "dataset2num_classes": {record.name: record.num_classes for record in self.tasks},
            "masks": self.owners(),
            "shared_layer_info": {record.name: _grouped(self.network, record) for record in self.tasks},
            "arrivals": {task: dict(tensors) for task, tensors in self.arrivals.items()},
        }

    @classmethod
    def from_payload(cls, payload: dict, *, build: Callable[..., Network], source: Path) -> "SharedNetwork":
        """The network in a checkpoint, either ours or a published one.

        Raises:
            UserError: The checkpoint is damaged or does not fit the architecture; names `source`.
        """
        history = payload["dataset_history"]
        if not history:
            raise UserError(f"{source} holds no task: use the checkpoint of a trained network")
        state = {
            name: value
            for name, value in payload["model_state_dict"].items()
            if not name.startswith("classifier.")  # the published code's alias of the active head
        }
        records = [_record(name, payload, source=source) for name in history]
        for record in records[:-1]:  # the network's state holds the newest task's private tensors
            _check_private(record, build=build, source=source)
        shared = cls(build=build, width=records[-1].width)
        for number, record in enumerate(records):
            weight = state.get(f"classifiers.{number}.weight")
            if weight is None:
                raise UserError(
                    f"{source} is damaged: no head for task {record.name} (classifiers.{number}.weight)"
                )
            if weight.shape[0] != record.num_classes:
                raise UserError(
                    f"{source} is damaged: the head of task {record.name} has {weight.shape[0]} classes, "
                    f"its entry in dataset2num_classes says {record.num_classes}"
                )
            shared.network.add_head(record.num_classes, in_features=weight.shape[1])
        masks = _owners(payload["masks"], shared.layers(), tasks=len(records), source=source)
        for name, layer in shared.layers().items():
            layer.owner.copy_(masks[name])
            if name in records[-1].piggymasks:
                earlier = (masks[name] > 0) & (masks[name] < len(records))
                layer.add_piggymask(records[-1].piggymasks[name].clone(), earlier=earlier)
        _load_strictly(shared.network, state, source=source)
        shared.tasks = records
        shared.network.modality = records[-1].modality
        shared.arrivals = {task: dict(tensors) for task, tensors in payload.get("arrivals", {}).items()}
        return shared


@torch.no_grad()
def redraw_freed(shared: SharedNetwork, *, only_dead_units: bool) -> None:
    """Draw the newest task's weights again, as in a new network; earlier tasks' weights stay as they are.

    Args:
        only_dead_units: draw only the weights of units (output channels) that no earlier weight enters.
    """
    index = len(shared.tasks)
    drawn = _owned_layers(shared.build(width=shared.width))
    for name, layer in shared.layers().items():
        own = layer.owner == index
        if only_dead_units:
            own &= own.flatten(1).all(dim=1).view(-1, *[1] * (own.dim() - 1))
        layer.weight.copy_(torch.where(own, drawn[name].weight.to(layer.weight.device), layer.weight))


class OwnedTraining(Method):
    """Train the newest task: gradients and weight decay touch only the weights that it owns.

    The gradient of a weight w owned by the task becomes ∂L/∂w + λw (λ is the weight decay), that of any other
    weight 0. Momentum therefore leaves other tasks' weights alone.

    Args:
        shared: The network, after `begin_task`.
        weight_decay: Applied to owned weights of convolutions and linears, and to nothing else.

    Attributes:
        owned_count: Number of weights that the task owns, counted by `before_task`.
    """

    def __init__(self, *, shared: SharedNetwork, weight_decay: float) -> None:
        self.shared = shared
        self.weight_decay = weight_decay

    def before_task(self) -> None:
        self.refresh()
        # Layers that the task owns entirely, as a first task does, need no mask. Waits for the device once.
        counts = torch.stack([others.sum() for others in self._others]).tolist()
        self.owned_count = sum(weight.numel() for weight in self._weights) - sum(counts)
        self._others = [others if count else None for others, count in zip(self._others, counts, strict=True)]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.shared.network.loss(logits, labels)

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the owners again after they have changed. Never waits for the device."""
        index = len(self.shared.tasks)
        layers = self.shared.layers().values()
        self._weights = [layer.weight for layer in layers]
        self._others: list[Tensor | None] = [layer.owner != index for layer in layers]

    @torch.no_grad()
    def after_backward(self) -> None:
        for weight, others in zip(self._weights, self._others, strict=True):
            weight.grad.add_(weight, alpha=self.weight_decay)
            if others is not None:
                # Not a product with the mask, which would let a NaN reach another task's weight.
                weight.grad.masked_fill_(others, 0.0)


def _owned_layers(network: Network) -> dict[str, nn.Module]:
    return {
        f"features.{name}": module
        for name, module in network.features.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, PrivateLinear)
    }


def _private_state(network: Network) -> dict[str, Tensor]:
    shared = {f"{name}.{kind}" for name in _owned_layers(network) for kind in ("weight", "piggymask")}
    return {
        name: value
        for name, value in network.state_dict().items()
        if name.startswith("features.") and name not in shared
    }


def _picked(piggymask: Tensor) -> Tensor:
    """The weights that a piggymask picks, as bool. A bool piggymask is returned as it is."""
    return piggymask if piggymask.dtype == torch.bool else piggymask > PICK_THRESHOLD


def _remove_piggymask(layer: nn.Module) -> None:
    if getattr(layer, "piggymask", None) is not None:
        del layer.piggymask
        del layer.earlier


def _region(whole: Tensor, part: Tensor, *, layer: nn.Module) -> tuple[slice | Tensor, ...]:
    """Index of the region of a layer's grown tensor that holds `part`, the same tensor before growth.

    The region is leading in every dimension. Where the layer's outputs are fused groups, it is leading in
    every group.
    """
    region: list[slice | Tensor] = [slice(0, size) for size in part.shape]
    groups = getattr(layer, "fused", 1)
    if groups > 1 and len(part) < len(whole):
        rows = torch.arange(len(whole), device=whole.device).view(groups, -1)
        region[0] = rows[:, : len(part) // groups].flatten()
    return tuple(region)


def _grouped(network: Network, record: TaskRecord) -> dict:
    modules = dict(network.named_modules())
    info: dict = {group: {} for group in _GROUPS}
    info["private"] = {}
    for name, value in record.private.items():
        layer, _, kind = name.rpartition(".")
        for group, (types, tensor) in _GROUPS.items():
            if kind == tensor and isinstance(modules[layer], types):
                info[group][layer] = value
                break
        else:
            info["private"][name] = value
    info["piggymask"] = dict(record.piggymasks)
    info["network_width_multiplier"] = record.width
    info["modality"] = record.modality
    return info


def _record(name: str, payload: dict, *, source: Path) -> TaskRecord:
    info = payload["shared_layer_info"].get(name)
    num_classes = payload["dataset2num_classes"].get(name)
    if info is None or num_classes is None:
        raise UserError(f"{source} is damaged: it lists task {name} but lacks its entry")
    private = {key: value.detach() for key, value in info.get("private", {}).items()}
    for group in (*_GROUPS, *_PUBLISHED_BIAS_GROUPS):
        tensor = _GROUPS[group][1] if group in _GROUPS else "bias"
        for layer, value in info.get(group, {}).items():
            private[f"{layer}.{tensor}"] = value.detach()
    return TaskRecord(
        name=name,
        num_classes=num_classes,
        width=float(info.get("network_width_multiplier", 1.0)),
        private=private,
        piggymasks={layer: value.detach() for layer, value in info.get("piggymask", {}).items()},
        modality=info.get("modality", "image"),
    )


def _blueprint(build: Callable[..., Network], width: float) -> Network:
    """The architecture on the meta device, without values. Draws no random numbers."""
    with torch.device("meta"):
        return build(width=width)


def _check_private(record: TaskRecord, *, build: Callable[..., Network], source: Path) -> None:
    blueprint = _blueprint(build, record.width)
    expected = _private_state(blueprint)
    counters = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = expected.keys() - record.private.keys() - counters  # published checkpoints lack the counters
    unknown = record.private.keys() - expected.keys()
    if missing or unknown:
        raise UserError(
            f"{source} was made with another architecture: task {record.name}: "
            f"{_names('tensors', missing, unknown)}"
        )
    layers = _owned_layers(blueprint)
    for name, mask in record.piggymasks.items():
        if name not in layers or mask.shape != layers[name].weight.shape:
            raise UserError(
                f"{source} was made with another architecture or width: the piggymask {name} of task "
                f"{record.name} has the shape {tuple(mask.shape)}"
            )
    for name, value in record.private.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{source} was made with another architecture or width: {name} of task {record.name} has "
                f"the shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            )


def _owners(
    masks: Mapping[str, Tensor], layers: Mapping[str, nn.Module], *, tasks: int, source: Path
) -> dict[str, Tensor]:
    """The owners in a checkpoint of `tasks` tasks, as uint8."""
    missing, unknown = layers.keys() - masks.keys(), masks.keys() - layers.keys()
    if missing or unknown:
        raise UserError(f"{source} was made with another architecture: {_names('masks', missing, unknown)}")
    for name, layer in layers.items():
        if masks[name].shape != layer.weight.shape:
            raise UserError(
                f"{source} was made with another architecture or width: {name} has the shape "
                f"{tuple(masks[name].shape)}, expected {tuple(layer.weight.shape)}"
            )
        # Before the conversion to uint8, which would wrap around or truncate. NaN and inf fail the last test.
        mask = masks[name]
        wrong = mask[(mask < 0) | (mask > tasks) | (mask % 1 != 0)]
        if len(wrong):
            raise UserError(
                f"{source} is damaged: {name} has weights of owner {wrong[0].item()}, expected 0 (free) to "
                f"{tasks} (its tasks): use another copy or train it again"
            )
    return {name: mask.to(torch.uint8) for name, mask in masks.items()}


def _load_strictly(network: Network, state: Mapping[str, Tensor], *, source: Path) -> None:
    expected = network.state_dict()
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        raise UserError(f"{source} was made with another architecture: {_names('weights', missing, unknown)}")
    for name, value in expected.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"{source} was made with another architecture or width: {name} has the shape "
                f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
            )
    network.load_state_dict(state)


def _names(kind: str, missing: set[str], unknown: set[str]) -> str:
    parts = []
    if missing:
        parts.append(f"missing {kind} {', '.join(sorted(missing))}")
    if unknown:
        parts.append(f"unknown {kind} {', '.join(sorted(unknown))}")
    return "; ".join(parts)
