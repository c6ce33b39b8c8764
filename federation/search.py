"""The search for a backbone (stage 3-1) by a target that holds nobody else's scratch network or samples."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.tables import Table, Task
from federation.evidence import DDV, distance, evidence_of, similarities
from methods.modeldiff import Model
from methods.rules import BY_LABELS, BY_RECORD, BY_SIMILARITY, DISTANCES, RACE, ranking
from pipeline.choices import GIVEN
from pipeline.flags import Candidates
from pipeline.recipe import SamplesRecipe, SearchRecipe
from pipeline.scores import (
    CandidateNetworks,
    Costs,
    PrunedNetwork,
    Scores,
    label_scores,
    record_scores,
)
from pipeline.search import ScratchNetwork, Search
from utils.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What a candidate tells a target.

    Attributes:
        scratch: stamp of its scratch network and samples.
        pruned: stamp of its pruned network.
        recorded: score's name → value, of the scores that its device knows.
        packed: bytes of its pruned network, packed.
        evidence: what its scratch network says about the probes of the two.
        size: bytes of the answer, as it travelled.
        probes: its half of the probes, (n/2, …), if they are the tasks' own samples.
    """

    scratch: str
    pruned: str
    recorded: Mapping[str, float]
    packed: int
    evidence: Mapping[str, Tensor]
    size: int
    probes: Tensor | None


def names_of_evidence(rules: Sequence[str]) -> tuple[str, ...]:
    """What a candidate gives evidence for, if the target chooses by `rules`: empty if none needs probes."""
    ddv = (DDV,) if {"farthest", "nearest"} & {*rules} else ()
    return (*ddv, *(name for name in BY_SIMILARITY if name in rules))


def needs_networks(search: Search) -> bool:
    """Whether the target scores the candidates' pruned networks at home."""
    return search.rule == RACE or any(rule in BY_LABELS for rule in search.steps)


class FederatedSearch(Search):
    """A target's search among the candidates that answered.

    The received pruned networks, if the rule needs them, are in the target's own folders.

    Args:
        answers: candidate's id → its answer.

    Attributes:
        order: ids of the candidates, the best first, after `find`.
        stamp: the recipe of the choice, after `find`.
    """

    def __init__(self, args: argparse.Namespace, *, table: Table, answers: Mapping[int, Answer]) -> None:
        candidates = ",".join(map(str, sorted(answers)))
        changes = {
            "overwrite": True,  # scores take seconds, and a choice among fewer candidates is another one
            "candidates": Candidates(tasks=candidates, among=args.candidates.among),
            "scores": "chosen",
        }
        super().__init__(argparse.Namespace(**vars(args) | changes), table=table)
        self.answers = answers
        self.order: list[int] = []
        self.stamp: dict = {}

    def recipe(self, target: Task, candidates: Sequence[Task]) -> SearchRecipe:
        found = super().recipe(target, candidates)
        self.stamp = found.stamp()
        return found

    def scratch(self, task: Task, networks: CandidateNetworks) -> ScratchNetwork:
        if task.id not in self.answers:
            return super().scratch(task, networks)
        answer = self.answers[task.id]
        return ScratchNetwork(
            model=Model(id=task.id, network=nn.Identity(), probes=torch.empty(0)),
            stamp=answer.scratch,
            samples=SamplesRecipe(config=self.table.name, task=task.name, data=answer.scratch),
            smallest_class=0,
            sample=None,
            projection={},
        )

    def pruned(self, task: Task) -> PrunedNetwork:
        answer = self.answers[task.id]
        if needs_networks(self):
            return super().pruned(task)
        found = PrunedNetwork(
            network=nn.Identity(), recorded=answer.recorded, size=answer.packed, stamp=answer.pruned
        )
        return self._pruned.setdefault(task.id, found)

    def measure(
        self,
        target: Task,
        candidates: Sequence[Task],
        *,
        recipe: SearchRecipe,
        wanted: set[str],
        costs: Costs,
    ) -> Scores:
        scores: Scores = {task.id: {} for task in candidates}
        own = self.scratch(target, self.own)
        names = [DDV] if wanted & {*DISTANCES} else []
        names += [name for name in BY_SIMILARITY if name in wanted]
        mine: Mapping[str, Tensor] = {}
        for task in candidates if wanted & {*DISTANCES, *BY_SIMILARITY} else ():
            answer = self.answers[task.id]
            with costs.timed("ddv"):
                if not mine or answer.probes is not None:  # shared probes are the same for all
                    halves = halves_for(self, target, candidates=answer.probes)
                    mine = evidence_of(own.model.network, halves, names=names, compute=self.compute)
                if wanted & {*DISTANCES}:
                    found = distance(answer.evidence, mine, task=task.id)
                    scores[task.id] |= {"ddv_cos": found.cos, "ddv_euc": found.euc}
                scores[task.id] |= similarities(answer.evidence, mine)
            costs.send("ddv", answer.size)
        pruned = {task.id: self.pruned(task) for task in candidates}
        groups = []
        if wanted & {*BY_LABELS, *BY_RECORD}:
            names = self.by_labels(target, wanted)
            labelled = label_scores(pruned, own.sample, names=names, compute=self.compute, costs=costs)
            groups = [labelled, record_scores(pruned, costs=costs)]
        for group in groups:
            for candidate, values in group.items():
                scores[candidate] |= values
        return scores

    def choose(self, target: Task, scores: Scores, *, losses: Mapping[int, float]) -> int:
        best = super().choose(target, scores, losses=losses)
        if self.rule == GIVEN:
            self.order = [best]
            return best
        known = self.known(target, scores, rule=self.rule)
        others = ranking(known, rule=self.rule, seed=self.seed_of_choice(target), losses=losses)
        self.order = list(dict.fromkeys((best, *others)))
        return best


def check_searchable(search: Search) -> None:
    """Refuse settings that need both networks on one device.

    Raises:
        UserError: for mutated probes, and for networks that read several modalities.
    """
    if search.build.multimodal:
        raise UserError(f"--arch {search.build.name}: networks of several modalities do not federate")
    if search.mutations:
        raise UserError(
            f"--max_iterations {search.mutations}: mutations need both networks on one device: give 0"
        )
    if search.args.baseline_folder is not None or search.args.fleet is not None:
        raise UserError("--fleet, --baseline_folder: a device knows only its own networks: leave them out")


def halves_for(
    search: Search, target: Task, *, candidates: Tensor | None = None, targets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The candidate's and the target's half of the probes, on the device.

    Args:
        candidates, targets: the other device's half, where the probes are the tasks' own samples; None where
            devices share them, and for the half of this device.
    """
    if search.probes.probes is not None:
        return search.shared.drawn(target).halves
    (own,) = search.targets
    mine = search.scratch(own, search.own).model.probes
    halves = [mine if half is None else half.to(mine.device) for half in (candidates, targets)]
    count = min(map(len, halves))
    return halves[0][:count], halves[1][:count]
