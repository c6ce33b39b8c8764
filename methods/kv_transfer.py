"""Transfer a task's own K/V projection into another task's network (MM-Pick-a-back).

In the Perceivers only the tensors under `features.inputs.<modality>.` are tied to a modality: the K/V
projection and, for text, the positions. The rest, the trunk, reads keys and values of any modality. A target
therefore brings its own projection along, and the backbone's trunk reads its keys and values.
"""

from collections.abc import Mapping

from torch import Tensor

from methods.ownership import SharedNetwork
from utils.errors import UserError


def prefix_of(modality: str) -> str:
    """The common prefix of the names of all tensors tied to `modality`."""
    return f"features.inputs.{modality}."


def own_projection(shared: SharedNetwork, task: str) -> dict[str, Tensor]:
    """Copy every tensor of `task` that is tied to its modality.

    Returns:
        State name → tensor.

    Raises:
        UserError: The network has not learned the task or has no tensors tied to a modality.
    """
    shared.snapshot()
    record = shared.tasks[shared.index_of(task) - 1]
    prefix = prefix_of(record.modality)
    found = {name: value.clone() for name, value in record.private.items() if name.startswith(prefix)}
    if not found:
        raise UserError(
            f"the network of task {task} has no K/V projection for {record.modality} inputs: "
            "choose an --arch that has one, such as perceiver_io"
        )
    return found


def bring(projection: Mapping[str, Tensor], *, into: SharedNetwork, target: str) -> None:
    """Make `target` start from `projection` as its private copy when it begins in the network `into`.

    The network's other tasks keep their own. Nothing changes until the target begins.

    Raises:
        UserError: The network lacks some of the tensors or has them in another shape, or it has already
            learned the target.
    """
    if any(record.name == target for record in into.tasks):
        raise UserError(f"the network has already learned task {target}: choose another backbone or target")
    state = into.network.state_dict()
    differing = [
        f"{name} {tuple(value.shape)} (backbone: {tuple(state[name].shape) if name in state else 'missing'})"
        for name, value in projection.items()
        if name not in state or state[name].shape != value.shape
    ]
    if differing:
        raise UserError(
            f"the projection of task {target} does not fit the backbone: {', '.join(differing)}: "
            "train both with the same sizes"
        )
    into.arrivals[target] = {name: value.detach().clone() for name, value in projection.items()}
