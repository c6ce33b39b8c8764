"""The scripts of a federation, driven with a fake interpreter and fakes of Flower's commands."""

import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run_pickaback.test_stages_bash import STAGES, Bash, succeeded

# The real parser checks the server's flags; the fake interpreter does the rest.
INTERPRETER = f"""#!/usr/bin/env bash
[[ $* != *parse_server* ]] || exec {shlex.quote(sys.executable)} "$@"
exec "$(dirname "$0")/recorder" "$@"
"""
# It ends like the real one, which leaves its flower-superexec behind.
SUPERLINK = f"""#!{sys.executable}
import pathlib, socket, subprocess, sys
home = pathlib.Path(__file__).parent
(home / "superlink.txt").write_text(" ".join(sys.argv))
subprocess.Popen([home / "flower-superexec"])
held = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
while True:
    held.accept()
"""
# It starts another app even while it ends.
SUPEREXEC = """#!/usr/bin/env bash
begin() { sleep 60 & echo $! >>"$(dirname "$0")/apps.txt"; }
trap 'begin; exit' TERM
begin
while :; do sleep 0.1; done
"""
SUPERNODE = """#!/usr/bin/env bash
echo "$*" >>"$(dirname "$0")/supernodes.txt"
exec sleep 60
"""
FLWR = """#!/usr/bin/env bash
case $1 in
    run) echo running; [[ -z ${FAKE_RUN:-} ]] || exec sleep "$FAKE_RUN"; exit "${FAKE_RUN_STATUS:-0}" ;;
    list) echo "{\\"status\\": \\"${FAKE_STATUS:-finished:completed}\\"}" ;;
esac
"""


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])


class Federation(Bash):
    """Scripts of a federation whose commands are all fakes, and whose files are in `folder`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.python.rename(folder / "recorder")
        fakes = {"fake_python": INTERPRETER, "flwr": FLWR, "flower-superlink": SUPERLINK}
        for name, text in {**fakes, "flower-superexec": SUPEREXEC, "flower-supernode": SUPERNODE}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    @property
    def server_log(self) -> Path:
        return self.folder / "federation/server/run.log"

    def environment(self, **variables: str) -> dict[str, str]:
        roots = dict.fromkeys(("DATA_ROOT", "CHECKPOINTS_ROOT", "LOGS_ROOT"), str(self.folder))
        own = {"FEDERATION_PORT": free_port(), "THREADS": "1", "REPORT": "", **roots}
        return super().environment(**own | variables)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.mark.parametrize("failure", [{"FAKE_RUN_STATUS": "1"}, {"FAKE_STATUS": "finished:failed"}])
def test_a_server_that_fails_prints_no_table_of_an_older_run(
    federation: Federation, failure: dict[str, str]
) -> None:
    succeeded(federation.run("federated.sh", "digits"))
    assert federation.commands()[-1].startswith("-m federation.table ")
    federation.log.unlink()
    failed = federation.run("federated.sh", "digits", **failure)
    assert failed.returncode == 1
    assert failed.stderr == (
        f"error: the server failed: see {federation.server_log}; once that is corrected, "
        "the same command continues from here\n"
    )
    assert not any("federation.table" in command for command in federation.commands())


def test_wrong_flags_of_the_server_are_refused_before_anything_starts(federation: Federation) -> None:
    refused = federation.run("federated.sh", "digits", EXTRA_FEDERATION_ARGS="--wait soon")
    assert refused.returncode == 1
    assert "--wait" in refused.stderr and "correct EXTRA_FEDERATION_ARGS" in refused.stderr
    assert federation.commands() == []


def test_the_default_rule_sends_no_network_but_the_chosen_one(federation: Federation) -> None:
    rules = {}
    for name in ("", "logme"):
        succeeded(
            federation.run(
                "federated_device.sh", "digits", "1", BACKBONE=name, FEDERATION_PORT="", FAKE_TASKS="red"
            )
        )
        flags = (federation.folder / "device/search.flags").read_text().splitlines()
        rules[name] = flags[flags.index("--select") + 1]
        assert flags[flags.index("--probes") + 1] == "noise"
    assert rules == {"": "farthest", "logme": "logme"}


def test_a_port_that_is_in_use_or_is_none_is_refused_before_anything_starts(federation: Federation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        refused = federation.run("federated.sh", "digits", FEDERATION_PORT=str(port))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: FEDERATION_PORT={port} is in use: ")
    wrong = federation.run("federated.sh", "digits", FEDERATION_PORT="65536")
    assert wrong.stderr == "error: FEDERATION_PORT=65536 must be a port from 1 to 65535\n"
    assert federation.commands() == []


def test_no_process_outlives_the_script(federation: Federation) -> None:
    succeeded(federation.run("federated.sh", "digits", FAKE_RUN="0.3"))
    apps = (federation.folder / "apps.txt").read_text().split()
    states = subprocess.run(
        ["ps", "-o", "stat=", "-p", ",".join(apps)], capture_output=True, text=True
    ).stdout
    assert apps and all(state.startswith("Z") for state in states.split()), "an app is left behind"


def test_the_terminal_shows_where_the_server_logs_and_how_to_go_on(federation: Federation) -> None:
    script = federation.start("federated.sh", FAKE_RUN="60")
    for _ in range(1000):
        if federation.server_log.exists() and federation.server_log.read_text():
            break
        time.sleep(0.01)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=30)
    assert f"-- the server's log: {federation.server_log}\n" in output
    assert "stopped by signal 15" in output.splitlines()[-1]
    assert federation.server_log.read_text() == "running\n"


def test_missing_certificates_are_named_before_anything_starts(federation: Federation) -> None:
    folder = federation.folder / "certificates"
    (folder / "keys").mkdir(parents=True)
    wanted = ("ca.crt", "server.crt", "server.key", "keys/red.pub", "keys/red")
    for name in wanted:
        refused = federation.run("federated.sh", "digits", CERTIFICATES=str(folder), FAKE_TASKS="red green")
        assert refused.stderr.startswith(f"error: CERTIFICATES={folder} has no {name}: ")
        for key in (name, name.replace("red", "green")):
            (folder / key).write_text("x")
    (folder / "keys/red").unlink()
    refused = federation.run(
        *("federated_device.sh", "digits", "1", "--superlink", "127.0.0.1:1"),
        **{"CERTIFICATES": str(folder), "FAKE_TASKS": "red", "FEDERATION_PORT": ""},
    )
    assert refused.stderr.startswith(f"error: CERTIFICATES={folder} has no keys/red: ")
    assert federation.commands() == []


@pytest.mark.parametrize("names", [("a b/c", "red"), ("localhost", "a/b")])
def test_names_that_cannot_have_a_key_leave_no_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    command = ["bash", STAGES / "federation_keys.sh", tmp_path / "keys", *names]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "keys").exists()
