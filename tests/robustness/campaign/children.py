"""Commands in forked children: no imports to wait for, so that a kill costs about a second."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch._dynamo  # noqa: F401 (the first optimizer of a process imports it, for two seconds)

import CPG_cifar100_main_normal
import CPG_MM_main_normal
import packnet_cifar100_main_normal
import pickaback_perceiverIO
import spg_main
import transfer_kv_perceiver_io
from data import prepare
from tools import list_tasks, report, select_pruning_ratio
from utils import errors

# Far longer than any command of the campaign takes, in seconds of processor time.
PATIENCE = 300
# The same in seconds that pass, on a busy machine.
PATIENCE_ON_THE_CLOCK = 3600
TRACEBACK = "Traceback (most recent call last)"

ENTRIES: dict[str, ModuleType] = {
    module.__name__: module
    for module in (
        packnet_cifar100_main_normal,
        CPG_cifar100_main_normal,
        CPG_MM_main_normal,
        pickaback_perceiverIO,
        transfer_kv_perceiver_io,
        spg_main,
        select_pruning_ratio,
        list_tasks,
        report,
        prepare,
    )
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status; negative for a signal; None if it was stopped after `PATIENCE`.
        output: its standard output and standard error, together.
        seconds: processor time.
    """

    status: int | None
    output: str
    seconds: float

    @property
    def tracebacks(self) -> int:
        """Tracebacks, and signals that nobody sent."""
        return self.output.count(TRACEBACK) + (
            self.status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
        )


class Child:
    """An entry point's `main` in a forked child, which leads a process group.

    The parent must not have started threads: a fork copies only one of them.

    Args:
        entry: a name in `ENTRIES`.
        output: file that receives standard output and standard error.
        before: called in the child before `main`, to change its surroundings.
    """

    def __init__(
        self, entry: str, argv: Sequence[str], *, output: Path, before: Callable[[], None] | None = None
    ) -> None:
        self.output = output
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(entry, argv, output=output, before=before)
        self.file = os.pidfd_open(self.pid)

    def ends_within(self, seconds: float) -> bool:
        """Wait up to `seconds`; whether the child has ended."""
        return bool(select.select([self.file], [], [], max(seconds, 0))[0])

    def ends_before(self, seconds: float) -> bool:
        """Wait until the child has computed for `seconds`; whether it has ended before.

        The time that it computes, unlike the time that passes, does not depend on what runs beside it.
        """
        while not self.ends_within(0):
            left = seconds - self.computed()
            if left <= 0:
                return False
            self.ends_within(max(left, 0.001))
        return True

    def computed(self) -> float:
        """Seconds of processor time so far."""
        # The clock of a process, as clock_getcpuclockid(3) composes it.
        return time.clock_gettime((~self.pid << 3) | 2)

    def kill(self, number: int) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self.file, number)

    def end(self) -> Ended:
        """Wait for the child, and stop it if it takes too long."""
        until = time.monotonic() + PATIENCE_ON_THE_CLOCK
        while not self.ends_within(1) and self.computed() < PATIENCE and time.monotonic() < until:
            pass
        late = not self.ends_within(0)
        if late:
            self.kill(signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.file)
        return Ended(
            status=None if late else os.waitstatus_to_exitcode(status),
            output=self.output.read_text(errors="replace"),
            seconds=usage.ru_utime + usage.ru_stime,
        )


def run(entry: str, argv: Sequence[str], *, output: Path, before: Callable[[], None] | None = None) -> Ended:
    """Run a command to its end."""
    return Child(entry, argv, output=output, before=before).end()


def _run(entry: str, argv: Sequence[str], *, output: Path, before: Callable[[], None] | None) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [entry, *argv]
        if before is not None:
            before()
        errors.run(ENTRIES[entry].main)
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # before `errors.run`
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
