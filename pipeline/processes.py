"""The processes that compute one task together, as the flags request."""

import argparse
from contextlib import AbstractContextManager, nullcontext

from training.parallel import processes


def processes_of(args: argparse.Namespace) -> AbstractContextManager:
    """The context in which the processes that `--gpus_per_task` or torchrun asks for share the computing.

    Raises:
        UserError: see `training.parallel.processes`.
    """
    if getattr(args, "list_unfinished", False):
        return nullcontext()
    return processes(
        count=args.gpus_per_task,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        nondeterministic=args.nondeterministic,
    )
