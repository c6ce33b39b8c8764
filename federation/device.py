"""One device: a task with its own data and networks, which answers as a candidate and learns as a target.

Nothing here knows how messages travel: every method takes parts and returns parts (`federation.parts`).
"""

import argparse
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pickaback_perceiverIO as search_script
from data.tables import Task, load_table
from federation.evidence import evidence_of
from federation.packed import pack, unpack
from federation.parts import Parts, bytes_in, shown, tensors_in, values_in
from federation.search import (
    Answer,
    FederatedSearch,
    check_searchable,
    halves_for,
    names_of_evidence,
    needs_networks,
)
from methods.ownership import SharedNetwork
from methods.rules import RULES, SCORES
from pipeline.flags import OWN
from pipeline.scores import PRUNE_REMEDY
from pipeline.search import Search
from tools.report import task_row
from training.checkpoints import check_architecture, fingerprint, load_checkpoint, save_checkpoint
from utils import logs
from utils.errors import UserError
from utils.paths import checkpoint_in, checkpoint_name, checkpoints_in
from utils.runtime import set_up_process

SEARCH_FLAGS, TRAINING_FLAGS = "search.flags", "training.flags"

# What a target says of itself, and candidates check.
_ANNOUNCEMENT = {
    "task": str,
    "id": int,
    "config": str,
    "architecture": dict,
    "rules": str,
    "seed": int,
    "probes": str,
    "pool": str,
    "count": int,
}
_ANSWER = {"scratch": str, "pruned": str, "recorded": dict, "packed": int}


def read_flags(path: Path) -> list[str]:
    """The flags in a file, one per line.

    Raises:
        UserError: if the file is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} not found: start the device with run_pickaback/federated.sh")
    return path.read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True)
class Settings:
    """How a device is set up.

    Attributes:
        folder: holds the flags of its search and of its training.
        max_bytes: limit of a network that it receives.
        shares_images: whether its images may leave as probes.
    """

    folder: Path
    max_bytes: int
    shares_images: bool = False


class Device:
    """A device with finished stages 1 to 2-2 of its own task."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.args: argparse.Namespace = search_script.parse(read_flags(settings.folder / SEARCH_FLAGS))
        self.table = load_table(self.args.dataset_config, data_root=self.args.data_root)
        set_up_process(
            threads=self.args.threads,
            precision=self.args.precision,
            nondeterministic=self.args.nondeterministic,
        )

    @cached_property
    def search(self) -> Search:
        """The device's own side of a search.

        Raises:
            UserError: for settings that do not work between devices.
        """
        search = Search(self.args, table=self.table)
        check_searchable(search)
        if len(search.targets) != 1:
            raise UserError(f"--dataset {self.args.dataset}: a device has one task")
        return search

    @property
    def task(self) -> Task:
        """The device's task."""
        return self.search.targets[0]

    # As a target and as a candidate

    def announcement(self) -> Parts:
        """What the device says of itself: `announcement`, and `probes` if those are its own images."""
        return {"announcement": self._said(), **self._own_probes(self.search.steps)}

    def answer(self, request: Parts) -> Parts:
        """Answer the targets that `request` announces as `target.<id>`, with `probes.<id>` if they send any.

        Returns:
            `answer` for all of them, its own `probes` if it sends any, and for each target
            `evidence.<id>`, or `declined.<id>` with the reason.
        """
        search = self.search
        own = search.scratch(self.task, search.own)
        pruned = search.pruned(self.task)
        path = checkpoint_in(search.own.pruned(self.task), remedy=PRUNE_REMEDY)
        values = {
            "scratch": own.stamp,
            "pruned": pruned.stamp,
            "recorded": dict(pruned.recorded),
            "packed": len(self._packed(path)),
        }
        reply: Parts = {"answer": values}
        for name in request:
            kind, _, number = name.partition(".")
            if kind != "target":
                continue
            try:
                announced = values_in(request, name, kinds=_ANNOUNCEMENT)
                target = self._other(number)
                self._check_compatible(announced)
                rules = announced["rules"].split()
                targets = self._received_probes(request, f"probes.{number}", rules=rules)
                reply |= self._own_probes(rules)
                reply[f"evidence.{target.id}"] = self._evidence(target, rules=rules, targets=targets)
            except UserError as error:
                logging.warning("Target %s gets no answer: %s", number, error)
                reply[f"declined.{number}"] = {"reason": str(error)}
        return reply

    def network(self) -> Parts:
        """The device's pruned network, packed: `network`."""
        path = checkpoint_in(self.search.own.pruned(self.task), remedy=PRUNE_REMEDY)
        return {"network": self._packed(path)}

    # As a target

    def rank(self, request: Parts) -> Parts:
        """Choose among the candidates whose `answer.<id>`, `evidence.<id>` and `network.<id>` arrived.

        Returns:
            `ranking`: ids, the best first; the stamp of the choice; who was refused and why.
        """
        answers: dict[int, Answer] = {}
        refused: list[str] = []
        for name in sorted(request):
            kind, _, number = name.partition(".")
            if kind != "answer":
                continue
            try:
                task = self._other(number)
                answers[task.id] = self._received_answer(request, task)
            except UserError as error:
                refused.append(f"device {self._name(number)} is refused: {error}")
                logging.warning("%s", refused[-1])
        order, stamp = [], {}
        if answers:
            search = FederatedSearch(self.args, table=self.table, answers=answers)
            with logs.to_file(search.paths.stage_log(self.table.name, "find_backbone")):
                try:
                    search.find(self.task)
                except UserError as error:
                    refused.append(f"no choice for {self.task.name}: {error}")
                    logging.warning("%s", refused[-1])
                order, stamp = [task for task in search.order if task in answers], search.stamp
        return {"ranking": {"order": order, "stamp": stamp, "refused": refused}}

    def learn(self, request: Parts) -> Parts:
        """Train on the `network` of the candidate that `backbone` names.

        Returns:
            `row`: the target's row of the table; or `declined` with the reason, if the network is refused.
        """
        asked = values_in(
            request, "backbone", kinds={"id": int, "pruned": str, "stamp": dict, "refused": list}
        )
        backbone = self._other(str(asked["id"]))
        try:
            self._receive(bytes_in(request, "network"), backbone, stamp=asked["pruned"])
        except UserError as error:
            reason = f"device {backbone.name} is refused: {error}"
            logging.warning("%s", reason)
            return {"declined": {"reason": reason}}
        passed_over = {"passed_over": asked["refused"]} if asked["refused"] else {}
        self.search.choices.write(self.task.id, str(backbone.id), asked["stamp"] | passed_over)
        import CPG_cifar100_main_normal as cpg_script  # scikit-learn, which no other message needs: seconds

        argv = read_flags(self.settings.folder / TRAINING_FLAGS)
        cpg_script.main([*argv, "--backbone", backbone.name])
        return self.row()

    def row(self) -> Parts:
        """The task's row of the table: `row`."""
        paths = self.search.paths
        row = task_row(
            self.task,
            table=self.table,
            paths=paths,
            arch=self.args.arch,
            pairs=paths.result_csv(self.table.name, among=self.args.candidates.among),
            backbone="from_csv",
            choices={rule: paths.result_csv(self.table.name, rule=rule) for rule in RULES},
        )
        row["widths"] = {str(width): accuracy for width, accuracy in row["widths"].items()}
        return {"row": row}

    # Checks of what others say

    def _other(self, number: str) -> Task:
        """The task of another device."""
        task = self.table.task(number)
        if task == self.task:
            raise UserError("it says that it is this device")
        return task

    def _name(self, number: str) -> str:
        return (
            self.table.task(number).name
            if number in {str(t.id) for t in self.table.tasks}
            else shown(number[:80])
        )

    def _said(self) -> dict[str, Any]:
        """What the device says of itself, and compares with what others say."""
        search = self.search
        return {
            "task": self.task.name,
            "id": self.task.id,
            "config": self.table.name,
            "architecture": search.sharable.entry,
            "rules": " ".join(search.steps),
            "seed": self.args.seed,
            "probes": self.args.probes,
            "pool": self._pool(),
            "count": self.args.val_batch_size,
            "needs_networks": needs_networks(search),
            "flags": self._flags_digest(),
        }

    def _flags_digest(self) -> str:
        """Changes with every setting of the device's search and training."""
        lines = [read_flags(self.settings.folder / name) for name in (SEARCH_FLAGS, TRAINING_FLAGS)]
        return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]

    def _check_compatible(self, announced: Mapping[str, Any]) -> None:
        own = self._said()
        for entry in ("config", "architecture", "seed", "probes", "pool", "count"):
            if announced[entry] != own[entry]:
                raise UserError(f"its {entry} is {shown(announced[entry])}, here it is {own[entry]}")

    def _received_answer(self, request: Parts, task: Task) -> Answer:
        number = str(task.id)
        values = values_in(request, f"answer.{number}", kinds=_ANSWER)
        recorded = {
            name: values_in({"recorded": values["recorded"]}, "recorded", kinds={name: float})[name]
            for name in values["recorded"]
            if name in SCORES
        }
        rules = self.search.steps
        probes = self._received_probes(request, f"probes.{number}", rules=rules)
        like = self._evidence(self.task, rules=rules, candidates=probes)
        evidence = tensors_in(request, f"evidence.{number}", like=like)
        if needs_networks(self.search):
            self._receive(bytes_in(request, f"network.{number}"), task, stamp=values["pruned"])
        return Answer(
            scratch=values["scratch"],
            pruned=values["pruned"],
            recorded=recorded,
            packed=values["packed"],
            evidence=evidence,
            size=sum(tensor.numel() * tensor.element_size() for tensor in evidence.values()),
            probes=probes,
        )

    def _pool(self) -> str:
        """Fingerprint of the probes that all devices share; empty for own ones."""
        return "" if self.args.probes == OWN else self.search.shared.drawn(self.task).fingerprint

    def _evidence(self, target: Task, *, rules: Sequence[str], **others: Tensor | None) -> dict[str, Tensor]:
        """What the device's network says about the probes, for `rules`; `others` as of `halves_for`."""
        names, search = names_of_evidence(rules), self.search
        if not names:
            return {}
        network = search.scratch(self.task, search.own).model.network
        return evidence_of(network, halves_for(search, target, **others), names=names, compute=search.compute)

    def _own_probes(self, rules: Sequence[str]) -> Parts:
        """The device's images, if they are the probes and one of `rules` needs probes.

        Raises:
            UserError: if its owner has not allowed that.
        """
        if self.args.probes != OWN or not names_of_evidence(rules):
            return {}
        if not self.settings.shares_images:
            raise UserError(
                f"--probes own sends images of {self.task.name} to the other devices: allow it with "
                "shares-images=true in --node-config, or use --probes noise"
            )
        probes = self.search.scratch(self.task, self.search.own).model.probes
        logging.warning("%d images of %s leave this device as probes", len(probes), self.task.name)
        return {"probes": {"images": probes}}

    def _received_probes(self, request: Parts, name: str, *, rules: Sequence[str]) -> Tensor | None:
        """Another device's images, perhaps fewer than this device's; None if `rules` need none from it."""
        if self.args.probes != OWN or not names_of_evidence(rules):
            return None
        like = self.search.scratch(self.task, self.search.own).model.probes
        part = request.get(name)
        sent = part.get("images") if isinstance(part, Mapping) else None
        count = len(sent) if isinstance(sent, Tensor) and sent.dim() else 0
        if not 2 <= count <= self.args.val_batch_size:
            raise UserError(f"its message has {count} images as {name}")
        expected = like.new_empty((count, *like.shape[1:]))
        return tensors_in(request, name, like={"images": expected})["images"]

    def _packed(self, path: Path) -> bytes:
        build = self.search.sharable
        return pack(load_checkpoint(path, architecture=build.name, layers=build.layers, sizes=build.sizes))

    def _receive(self, packed: bytes, backbone: Task, *, stamp: str) -> None:
        """Check a candidate's network, and put it where stage 3-2 looks for it.

        Raises:
            UserError: for anything but the pruned network of this task that the candidate announced.
        """
        build, where = self.search.sharable, Path(f"the network of {backbone.name}")
        payload = unpack(packed, max_bytes=self.settings.max_bytes)
        check_architecture(
            payload, architecture=build.name, layers=build.layers, sizes=build.sizes, where=where
        )
        shared = SharedNetwork.from_payload(payload, build=build, source=where)
        if shared.tasks[-1].name != backbone.name or len(shared.tasks) != 1:
            raise UserError(f"{where} holds {', '.join(task.name for task in shared.tasks)[:200]}")
        if fingerprint(payload) != stamp:
            raise UserError(f"{where} is not the one that was announced")
        _check_finite(payload["model_state_dict"], where=where)
        folder = self.search.fleet.pruned(backbone)
        path = folder / checkpoint_name(payload["epoch"])
        for earlier in checkpoints_in(folder).values():
            if earlier != path:
                earlier.unlink()
        save_checkpoint(path, payload)


def _check_finite(tensors: Mapping[str, Tensor], *, where: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: {name} has values that are not finite")
