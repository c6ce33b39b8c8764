"""The rounds of a federation: every target finds a backbone, and is trained, or says why not.

The server knows who is there, what each device answers and how large it is. It trains nothing, scores nothing
and unpacks no network.
"""

import argparse
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from data.tables import Table, Task
from federation.parts import (
    ALONE,
    ANSWER,
    HELLO,
    LEARN,
    NETWORK,
    RANK,
    Part,
    Parts,
    bytes_in,
    shown,
    values_in,
)
from federation.state import State
from methods.rules import RULES
from utils.errors import UserError
from utils.tables import is_signed

POLL_SECONDS = 1.0
MAX_REFUSED = 100  # lines that a target may say about others

# Columns of a row, in the order of `tools.report.task_row`; those of names, the others hold numbers.
COLUMNS = (
    *("id", "task", "modality", "gain", "gain@1.0", "own@w", "own", "widths", "backbone", "its modality"),
    *("ratio", "pruned", "after transfer", "scratch", "at chance", "gain (scratch)", "scratch@w"),
    *("gain (scratch@w)", "same", "best of same", "other", "best of other", "untransferred"),
    *("copy", "gain (copy)", "probe"),
    *(name for rule in RULES for name in (rule, f"{rule} backbone")),
)
_NAMES = {
    *("modality", "backbone", "its modality", "at chance", "best of same", "best of other"),
    *(f"{rule} backbone" for rule in RULES),
}
_WIDTH = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True)
class Failure:
    """No answer that counts, and why."""

    reason: str


Reply = Parts | Failure


class Post(Protocol):
    """Carries messages to devices, which it calls nodes. Threads may share it."""

    def nodes(self) -> list[int]:
        """The devices that are connected."""

    def ask(self, requests: Mapping[int, Parts], kind: str, *, deadline: float | None) -> dict[int, Reply]:
        """Send one message to each node, and wait for the answers.

        Args:
            deadline: seconds; None: until each has answered, or is known to be gone.

        Returns:
            Node → its first answer, or why there is none.
        """


@dataclass(frozen=True)
class Connected:
    """A device that said which task it is.

    Attributes:
        announcement: what it says of itself, as sent on to candidates.
        probes: its half of the probes, if it sends any.
    """

    node: int
    task: Task
    announcement: Mapping
    probes: Part | None


class Server:
    """Brings targets and candidates together."""

    def __init__(self, post: Post, *, table: Table, args: argparse.Namespace, state: State) -> None:
        self.post = post
        self.table = table
        self.args = args
        self.state = state
        self.devices: dict[int, Connected] = {}  # by task's id
        self._networks: dict[int, Reply] = {}
        self._asking: dict[int, threading.Lock] = {}

    def run(self) -> None:
        """Serve all targets."""
        targets = self.table.select(self.args.dataset)
        self.gather(self.table.select(self.args.devices))
        self.state.count_for({device.task.name: device.announcement for device in self.devices.values()})
        wanted = []
        for task in targets:
            if task.id not in self.devices:
                self.give_up(task, "its device is not there")
            elif self.state.is_finished(task.name, self.settings(task)):
                logging.info("Target %s is finished: skipped (--overwrite redoes it)", task.name)
                self.state.confirm(task.name)
            else:
                wanted.append(self.devices[task.id])
        if not wanted:
            return
        self._asking = {task: threading.Lock() for task in self.devices}
        answers = self.answers(wanted)
        with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
            rounds = [pool.submit(self.round, target, answers) for target in wanted]
        for target, finished in zip(wanted, rounds, strict=True):
            error = finished.exception()
            if error is not None:  # one target's trouble ends no other target
                self.give_up(target.task, f"the server failed: {type(error).__name__}: {error}")

    def settings(self, task: Task) -> dict:
        """The settings that a target's result is kept for."""
        return dict(self.devices[task.id].announcement)

    def gather(self, expected: Sequence[Task]) -> None:
        """Greet the devices that connect, until all of `expected` are there or `--wait` has passed."""
        end = time.monotonic() + self.args.wait
        greeted: set[int] = set()
        while len(self.devices) < len(expected) and time.monotonic() < end:
            new = [node for node in self.post.nodes() if node not in greeted]
            if not new:
                time.sleep(POLL_SECONDS)
                continue
            greeted |= {*new}
            replies = self.post.ask({node: {} for node in new}, HELLO, deadline=self.args.deadline)
            for node, reply in replies.items():
                self.welcome(node, reply, expected=expected)
        missing = [task.name for task in expected if task.id not in self.devices]
        if missing:
            logging.warning("Not there after %g s: %s", self.args.wait, ", ".join(missing))

    def welcome(self, node: int, reply: Reply, *, expected: Sequence[Task]) -> None:
        """Take in a device that says which task it is."""
        try:
            if isinstance(reply, Failure):
                raise UserError(reply.reason)
            said = values_in(
                reply, "announcement", kinds={"task": str, "id": int, "config": str, "needs_networks": bool}
            )
            task = next(
                (task for task in expected if (task.id, task.name) == (said["id"], said["task"])), None
            )
            if task is None or said["config"] != self.table.name:
                raise UserError(
                    f"it says that it is {shown(said['task'])} of {shown(said['config'])}, "
                    "which is not expected"
                )
            if task.id in self.devices:
                raise UserError(f"it says that it is {task.name}, as another device did before it")
        except UserError as error:
            logging.warning("Node %d is refused: %s", node, error)
            return
        self.devices[task.id] = Connected(node, task, dict(reply["announcement"]), reply.get("probes"))
        logging.info("Device %s is there", task.name)

    def answers(self, targets: Sequence[Connected]) -> dict[int, Parts]:
        """What each device answers to all of `targets`: by task's id, without those that gave no answer."""
        requests: dict[int, Parts] = {}
        for device in self.devices.values():
            request: Parts = {}
            for target in targets:
                if target.task != device.task:
                    request[f"target.{target.task.id}"] = target.announcement
                    if target.probes is not None:
                        request[f"probes.{target.task.id}"] = target.probes
            if request:
                requests[device.node] = request
        replies = self.post.ask(requests, ANSWER, deadline=self.args.deadline)
        return self.accepted(replies)

    def accepted(self, replies: Mapping[int, Reply]) -> dict[int, Parts]:
        """The answers by task's id; says who gave none."""
        by_node = {device.node: device for device in self.devices.values()}
        found = {}
        for node, reply in replies.items():
            task = by_node[node].task
            try:
                if isinstance(reply, Failure):
                    raise UserError(reply.reason)
                values_in(reply, "answer", kinds={"pruned": str})
            except UserError as error:
                logging.warning("Device %s is left out: %s", task.name, error)
            else:
                found[task.id] = reply
        return found

    def round(self, target: Connected, answers: Mapping[int, Parts]) -> None:
        """One target, from the choice to its row of the table."""
        task, refused = target.task, []
        order, stamp = self.choice(target, answers, refused)
        for candidate in order:
            backbone = self.devices[candidate].task
            network = self.network(backbone)
            if isinstance(network, Failure):
                refused.append(f"device {backbone.name} is passed over: {network.reason}")
                logging.warning("Target %s: %s", task.name, refused[-1])
                continue
            request: Parts = {
                "backbone": {
                    "id": candidate,
                    "pruned": str(answers[candidate]["answer"]["pruned"]),
                    "stamp": stamp,
                    "refused": refused,
                },
                "network": bytes_in(network, "network"),
            }
            logging.info("Target %s learns on %s", task.name, backbone.name)
            reply = self.post.ask({target.node: request}, LEARN, deadline=self.args.training_deadline)[
                target.node
            ]
            if isinstance(reply, Failure):
                self.give_up(task, reply.reason)
                return
            if "declined" in reply:
                refused.append(_reason(reply))
                logging.warning("Target %s: %s", task.name, refused[-1])
                continue
            self.keep(target, reply, backbone=backbone, refused=refused)
            return
        logging.warning("Target %s stays alone: no candidate is left", task.name)
        reply = self.post.ask({target.node: {}}, ALONE, deadline=self.args.deadline)[target.node]
        if isinstance(reply, Failure):
            self.give_up(task, reply.reason)
        else:
            self.keep(target, reply, backbone=None, refused=refused)

    def choice(
        self, target: Connected, answers: Mapping[int, Parts], refused: list[str]
    ) -> tuple[list[int], dict]:
        """The candidates from the best to the worst, and the stamp of the choice."""
        task, request = target.task, {}
        for candidate, reply in answers.items():
            if candidate == task.id:
                continue
            name = self.devices[candidate].task.name
            if "answer" not in reply or f"evidence.{task.id}" not in reply:
                refused.append(f"device {name} is left out: {_reason(reply, task.id)}")
                logging.warning("Target %s: %s", task.name, refused[-1])
                continue
            request[f"answer.{candidate}"] = reply["answer"]
            request[f"evidence.{candidate}"] = reply[f"evidence.{task.id}"]
            if "probes" in reply:
                request[f"probes.{candidate}"] = reply["probes"]
            if target.announcement["needs_networks"]:
                network = self.network(self.devices[candidate].task)
                if isinstance(network, Failure):
                    refused.append(f"device {name} is left out: {network.reason}")
                    logging.warning("Target %s: %s", task.name, refused[-1])
                    del request[f"answer.{candidate}"], request[f"evidence.{candidate}"]
                    continue
                request[f"network.{candidate}"] = bytes_in(network, "network")
        if not request:
            return [], {}
        reply = self.post.ask({target.node: request}, RANK, deadline=self.args.choice_deadline)[target.node]
        try:
            if isinstance(reply, Failure):
                raise UserError(reply.reason)
            said = values_in(reply, "ranking", kinds={"order": list, "stamp": dict, "refused": list})
        except UserError as error:
            refused.append(f"{task.name} made no choice: {error}")
            logging.warning("Target %s made no choice: %s", task.name, error)
            return [], {}
        refused += [shown(line) for line in said["refused"][:MAX_REFUSED]]
        order = [candidate for candidate in said["order"] if isinstance(candidate, int)]
        return [candidate for candidate in dict.fromkeys(order) if candidate in answers], said["stamp"]

    def network(self, task: Task) -> Reply:
        """The packed network of a device, which is asked for it once."""
        with self._asking[task.id]:
            if task.id not in self._networks:
                node = self.devices[task.id].node
                reply = self.post.ask({node: {}}, NETWORK, deadline=self.args.deadline)[node]
                if not isinstance(reply, Failure) and not isinstance(reply.get("network"), bytes):
                    reply = Failure("it sent no network")
                self._networks[task.id] = reply
        return self._networks[task.id]

    def keep(self, target: Connected, reply: Parts, *, backbone: Task | None, refused: list[str]) -> None:
        """Keep the target's row."""
        name = None if backbone is None else backbone.name
        try:
            row = checked_row(reply, target.task)
        except UserError as error:
            self.give_up(target.task, str(error))
            return
        self.state.finish(
            target.task.name, row=row, backbone=name, refused=refused, settings=self.settings(target.task)
        )
        logging.info("Target %s is finished: %s", target.task.name, f"on {name}" if name else "alone")

    def give_up(self, task: Task, reason: str) -> None:
        """Keep the reason why a target has no row."""
        logging.error("Target %s is not trained: %s", task.name, reason)
        self.state.fail(task.name, reason)


def checked_row(reply: Parts, task: Task) -> dict:
    """A target's row of the table as `tools.report.task_row` makes it; a column that it lacks is None.

    Raises:
        UserError: if the reply holds another row, or none.
    """
    said = values_in(reply, "row", kinds={"id": int, "task": str, "widths": dict})
    if (said["id"], said["task"]) != (task.id, task.name):
        raise UserError(f"its row is that of {shown(said['task'])}")
    sent = reply["row"]
    unknown = sorted(set(sent) - set(COLUMNS))
    if unknown:
        raise UserError(f"its row has the unknown column {shown(unknown[0])}")
    for width, accuracy in said["widths"].items():
        if not _WIDTH.fullmatch(width) or not _is_between(accuracy, 0, 1):
            raise UserError("its row has widths or accuracies that are out of range")
    for name, value in sent.items():
        if name not in said and value is not None and not _is_valid(name, value):
            raise UserError(f"{name} of its row is neither a number in its range nor a name")
    return {name: sent.get(name) for name in COLUMNS}


def _is_valid(name: str, value: object) -> bool:
    if name in _NAMES:
        return isinstance(value, str) and value.isprintable() and len(value) < 300
    low, high = (-1, 1) if is_signed(name) else (0, 1)
    return _is_between(value, low, high)


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _reason(reply: Parts, target: int | None = None) -> str:
    part = reply.get("declined" if target is None else f"declined.{target}")
    reason = part.get("reason") if isinstance(part, Mapping) else None
    return shown(reason) if reason else "its answer is incomplete"
