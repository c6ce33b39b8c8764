"""A Slurm cluster of several nodes on this machine, without systemd, cgroups or a second host."""

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

# `cred_expire`: how long a requeued job waits before it starts again.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser=root
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmdTimeout=5
KillWait=5
MinJobAge=300
MaxArraySize={max_array}
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def await_that(condition: Callable[[], object], *, what: str, seconds: float = 90) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)


class Cluster:
    """Daemons in the foreground, as children of this process; everything they write is in `folder`."""

    def __init__(self, folder: Path, *, nodes: tuple[str, ...] = ("n1", "n2", "n3"), max_array: int = 2):
        self.folder = folder
        self.nodes = nodes
        self.daemons: dict[str, subprocess.Popen] = {}
        controller_port, *ports = free_ports(1 + len(nodes))
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
            for node, port in zip(nodes, ports, strict=True)
        ]
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=folder,
                host=host,
                user=pwd.getpwuid(os.getuid()).pw_name,
                controller_port=controller_port,
                max_array=max_array,
                nodes="\n".join(lines),
            )
        )
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}

    def __enter__(self) -> "Cluster":
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *self._munge_files())
        await_that((self.folder / "munge.socket").exists, what="munged")
        self._start("slurmctld", "-D", "-f", str(self.configuration))
        for node in self.nodes:
            self.start_node(node)
        self.await_idle()
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--quiet", "--user=root")
        for node in self.nodes:
            self.kill_node(node)
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()

    def _munge_files(self) -> list[str]:
        return [
            f"--{name}={self.folder / 'munge'}.{suffix}"
            for name, suffix in (
                ("socket", "socket"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [name.partition("-")[0], *arguments],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # Interrupts that the caller ignores would be ignored by all jobs.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def start_node(self, node: str) -> None:
        self._start(f"slurmd-{node}", "-D", "-N", node, "-f", str(self.configuration))

    def kill_node(self, node: str) -> None:
        """What a power failure does: the daemon and all processes of its jobs die at once."""
        daemon = self.daemons.pop(f"slurmd-{node}", None)
        if daemon is not None:
            daemon.kill()
            daemon.wait()
        processes = list(self.processes_of(node))
        # A job's supervisor would still report how it ended.
        for process in [*filter(is_supervisor, map(parent_of, processes)), *processes]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes_of(self, node: str) -> Iterator[int]:
        """The processes of jobs on `node`."""
        return self._processes_with(f"SLURMD_NODENAME={node}")

    def processes_of_job(self, job: str) -> Iterator[int]:
        """The processes of an element of an array, such as 12_0."""
        array, _, index = job.partition("_")
        return self._processes_with(f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}")

    def _processes_with(self, *variables: str) -> Iterator[int]:
        wanted = {text.encode() for text in (*variables, f"SLURM_CONF={self.configuration}")}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted <= set(environment):
                yield int(folder.name)

    def await_idle(self) -> None:
        idle = ["idle"] * len(self.nodes)
        await_that(
            lambda: self.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split() == idle,
            what="idle nodes",
        )

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)


def parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/status")
    return int(status.read_text().partition("PPid:")[2].split()[0]) if status.exists() else 0


def is_supervisor(process: int) -> bool:
    name = Path(f"/proc/{process}/comm")
    return name.exists() and name.read_text().startswith("slurmstepd")
