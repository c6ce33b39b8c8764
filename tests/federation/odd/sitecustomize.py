"""Makes a device misbehave: ODD=WHEN:HOW, in the processes of that device alone (PYTHONPATH)."""

import os
import signal
import sys
import time
from pathlib import Path

WHEN, _, HOW = os.environ.get("ODD", "").partition(":")
PROGRAM = next((Path(word).name for word in sys.orig_argv[1:] if "/bin/fl" in word), "")


def vanish() -> None:
    """Kill the whole device, which leads its process group."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def misbehave(parts: dict) -> dict:
    import torch

    if HOW == "vanish":
        vanish()
    elif HOW == "late":
        time.sleep(30)
    elif HOW == "nan":
        parts = dict(parts)
        for name, part in parts.items():
            if name.startswith("evidence"):
                parts[name] = {key: torch.full_like(value, torch.nan) for key, value in part.items()}
    elif HOW == "garbage":
        parts = dict.fromkeys(parts, b"garbage")
    elif HOW == "bomb":
        parts = {name: bytes(5_000_000) for name in parts}
    return parts


if PROGRAM == "flwr-clientapp" and WHEN != "sending":
    from federation.device import Device

    usual = getattr(Device, WHEN)
    setattr(Device, WHEN, lambda *args: misbehave(usual(*args)))
elif PROGRAM == "flower-supernode" and WHEN == "sending":
    from flwr.supernode import start_client_internal

    sent = []

    def push(contents: object, **_: object) -> None:
        sent.append(contents)
        if len(sent) > 2:  # after hello and the answer: the network, whose message is there, but no content
            vanish()
        usual_push(contents, **_)

    usual_push = start_client_internal.push_object_contents_from_iterable
    start_client_internal.push_object_contents_from_iterable = push
