"""Moving a task's own K/V projection into another task's network (MM-Pick-a-back).

In the Perceivers only what turns inputs into keys and values is tied to a modality: the tensors under
`features.inputs.<modality>.`, for texts with their positions. The rest, the trunk, reads keys and values of
any modality. So a target brings its own projection along, and the backbone's trunk reads what it makes.
"""

from collections.abc import Mapping

from torch import Tensor

from methods.ownership import SharedNetwork
from utils.errors import UserError


def prefix_of(modality: str) -> str:
    """What the names of all tensors that are tied to `modality` begin with."""
    return f"features.inputs.{modality}."


def own_projection(shared: SharedNetwork, task: str) -> dict[str, Tensor]:
    """State name → `task`'s own copy of all that is tied to its modality.

    Raises:
        UserError: if the network has not learned the task, or has nothing tied to a modality.
    """
    shared.snapshot()
    record = shared.tasks[shared.index_of(task) - 1]
    prefix = prefix_of(record.modality)
    found = {name: value.clone() for name, value in record.private.items() if name.startswith(prefix)}
    if not found:
        raise UserError(
            f"the network of task {task} has no K/V projection for {record.modality} inputs: "
            "take an architecture that has, such as perceiver_io"
        )
    return found


def bring(projection: Mapping[str, Tensor], *, into: SharedNetwork, target: str) -> None:
    """Let `target`, once it begins in the network `into`, start from `projection` as its private copy.

    The tasks that the network holds keep theirs; until the target begins, nothing changes.

    Raises:
        UserError: naming the tensors that the network lacks or has in another shape, or if it has learned
            the target already.
    """
    if any(record.name == target for record in into.tasks):
        raise UserError(f"the network has already learned task {target}: choose another backbone or target")
    state = into.network.state_dict()
    differing = [
        f"{name} {tuple(value.shape)} (there {tuple(state[name].shape) if name in state else 'missing'})"
        for name, value in projection.items()
        if name not in state or state[name].shape != value.shape
    ]
    if differing:
        raise UserError(
            f"the projection of task {target} does not fit the backbone: {', '.join(differing)}: "
            "train both with the same sizes"
        )
    into.arrivals[target] = {name: value.detach().clone() for name, value in projection.items()}
