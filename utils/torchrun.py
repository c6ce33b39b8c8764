"""Whether torchrun started this process with others, and which of them it is."""

import os


def size_of_job() -> int | None:
    """Number of processes that torchrun started; None if it started none or only this one."""
    size = int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1
    return size if size > 1 else None


def rank_in_job() -> int:
    """Number of this process among all of the job, from 0; 0 without torchrun."""
    return int(os.environ["RANK"]) if _by_torchrun() else 0


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return int(os.environ["LOCAL_RANK"])


def local_size() -> int:
    """Number of processes of the job on its machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"])


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
