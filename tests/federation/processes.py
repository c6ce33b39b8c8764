"""A federation of real processes on this machine, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from federation.state import State
from tests.federation.conftest import separate, write_flags
from tests.helpers import REPOSITORY, Fleet

ODD = Path(__file__).with_name("odd")
BIN = Path(sys.executable).parent
# Seconds: every message starts a process that imports PyTorch.
DEADLINE = float(os.environ.get("FEDERATION_DEADLINE", "30"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


@dataclass
class Federation:
    """A SuperLink and SuperNodes, each the leader of a process group of its own.

    Args:
        certificates: folder for TLS and node authentication; None for neither.
    """

    root: Path
    fleet: Fleet
    certificates: Path | None = None
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        flower = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        flower |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "PYTHONPATH": str(REPOSITORY)}
        path = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **path, **flower, **more}

    def start(self, name: str, *command: object, **more: str) -> None:
        home = self.root / name / "flower"
        home.mkdir(parents=True, exist_ok=True)
        with (self.root / name / "log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                env=self.environment(FLWR_HOME=str(home), **more),
                start_new_session=True,
            )

    def superlink(self) -> None:
        """Start the server; again, on the same database, after it was killed."""
        security = ["--insecure"]
        if self.certificates:
            names = (
                ("ssl-ca-certfile", "ca.crt"),
                ("ssl-certfile", "server.crt"),
                ("ssl-keyfile", "server.key"),
            )
            security = [part for flag, name in names for part in (f"--{flag}", self.certificates / name)]
            security.append("--enable-supernode-auth")
        database = self.root / "superlink.db"
        where = ("--host", "127.0.0.1", "--port", self.port, "--database", database)
        self.start(
            "server", "flower-superlink", *security, *where, "--disable-runtime-dependency-installation"
        )
        home = self.root / "server/flower/config.toml"
        trust = (
            f'root-certificates = "{self.certificates}/ca.crt"' if self.certificates else "insecure = true"
        )
        address = f'address = "127.0.0.1:{self.port}"'
        home.write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\n{address}\n{trust}\n')
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError((self.root / "server/log").read_text()[-3000:])

    def device(self, task: str, *search: object, odd: str = "", megabytes: float = 1.0) -> Path:
        """Start a device; returns its log."""
        root = self.root / task
        own = Fleet(root=root, data=root / "data")
        if not (root / "data").exists():
            separate(self.fleet, task, root=root)
        folder = write_flags(own, task, *search)
        security = ["--insecure"]
        if self.certificates:
            key = self.certificates / "keys" / task
            security = [
                "--root-certificates",
                self.certificates / "ca.crt",
                "--auth-supernode-private-key",
                key,
            ]
        config = f'device="{folder}" max-megabytes={megabytes} shares-images=false'
        where = ("--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1", "--port", free_port())
        more = {"ODD": odd, "PYTHONPATH": f"{ODD}:{REPOSITORY}"} if odd else {}
        self.start(task, "flower-supernode", *security, *where, "--node-config", config, **more)
        return root / "log"

    def flwr(self, *command: object) -> subprocess.Popen:
        with (self.root / "server/flwr.log").open("ab") as log:
            home = str(self.root / "server/flower")
            environment = self.environment(FLWR_HOME=home)
            return subprocess.Popen(["flwr", *map(str, command)], stdout=log, stderr=log, env=environment)

    def register(self, task: str) -> int:
        """Let a device with this key connect; returns the exit status."""
        return self.flwr("supernode", "register", self.certificates / "keys" / f"{task}.pub", "here").wait(
            DEADLINE
        )

    def begin(self, *flags: object, **deadlines: float) -> subprocess.Popen:
        """Start the run of the targets."""
        settings = {"deadline": DEADLINE, "wait": 10 * DEADLINE, "max_bytes": 1_000_000} | deadlines
        lines = [
            "--dataset_config",
            "digits",
            "--data_root",
            self.fleet.data,
            "--logs_root",
            self.root / "logs",
        ]
        lines += [*flags, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        path = self.root / "server/server.flags"
        path.write_text("".join(f"{line}\n" for line in lines))
        return self.flwr("run", REPOSITORY / "federation/app", "here", "--stream", "-c", f'flags="{path}"')

    def serve(
        self, *flags: object, timeout: float = 100 * DEADLINE, **deadlines: float
    ) -> Mapping[str, dict]:
        """Serve the targets to their end; returns the state of each."""
        self.begin(*flags, **deadlines).wait(timeout)
        state = State.read(self.root / "logs/lenet5/seed1/federation_digits.json")
        assert state.targets, (self.root / "server/flwr.log").read_text()[-3000:]
        return state.targets

    def kill(self, name: str) -> None:
        """Kill a process with all that it started."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)
