"""The processes of a task other than the first: they compute what the first one sends.

    python -m training.worker PORT RANK SIZE DEVICE

`training.parallel` starts them, or becomes one under torchrun.
"""

import signal
import sys
import traceback

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.exchange import LOCALHOST, Link, PackedModule, failure_key, is_loss, ready_key
from utils.runtime import reuse_memory, set_numerics, set_random_state, set_threads


def serve(link: Link) -> None:
    """Compute until process 0 says stop, or is gone. A failure is left in the store: process 0 reports it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches process 0, too
    worker = Worker(link)
    try:
        while worker.obey(**link.message()):
            pass
    except Exception as error:  # of any kind
        if not is_loss(error):
            link.store.set(failure_key(link.rank), traceback.format_exc())
        sys.exit(1)
    link.close()


class Worker:
    """A copy of the module that process 0 trains or evaluates.

    Attributes:
        tensors: of the module, in the order of process 0.
        output: of the last forward pass.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.module = nn.Module()
        self.tensors: list[Tensor] = []
        self.output: Tensor | None = None

    def obey(self, do: str, **arguments: object) -> bool:
        """Do what a message says; return whether to expect another one."""
        if do != "stop":
            getattr(self, f"_{do}")(**arguments)
        return do != "stop"

    def _set_up(self, *, threads: int, precision: str, nondeterministic: bool) -> None:
        set_threads(threads)
        reuse_memory()
        set_numerics(precision=precision, nondeterministic=nondeterministic)

    def _load(self, *, packed: PackedModule) -> None:
        self.output = None
        self.module, self.tensors = packed.unpack(self.link.device)
        self.link.broadcast(self.tensors)

    def _forward(
        self,
        *,
        total: int,
        shape: torch.Size,
        dtype: torch.dtype,
        trained: list[int],
        gradients: bool,
        autocast: dict,
        random: dict[str, Tensor] | None,
    ) -> None:
        self.output = None  # its graph would need memory
        self.link.broadcast([self.tensors[number] for number in trained])
        inputs = self.link.receive_rows(total, shape, dtype)
        if random is not None:
            set_random_state(random, self.link.device)
        with torch.set_grad_enabled(gradients), torch.autocast(**autocast), self.link.rows(total):
            self.output = self.module(inputs)
        self.link.gather(self.output.detach(), total)

    def _backward(self, *, total: int) -> None:
        grad = self.link.receive_rows(total, self.output.shape[1:], self.output.dtype)
        self.link.reduce(gradients_of(self.module, self.output, grad)[1])


def gradients_of(module: nn.Module, output: Tensor, grad: Tensor) -> tuple[list[Tensor | None], list[Tensor]]:
    """The gradients of a module's trained parameters, and those that are not None.

    Keeps the graph, for another backward pass.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output, trained, grad, retain_graph=True, allow_unused=True)
    return list(gradients), [value for value in gradients if value is not None]


def main() -> None:
    port, rank, size, device = sys.argv[1:]
    store = dist.TCPStore(LOCALHOST, int(port), is_master=False)
    store.set(ready_key(int(rank)), b"")
    serve(Link(rank=int(rank), size=int(size), device=torch.device(device), store=store))


if __name__ == "__main__":
    main()
