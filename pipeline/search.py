"""Stage 3-1: choose the backbone of every target by comparing the candidates' networks."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.loading import Batches, load_task
from data.tables import Table, Task, load_table
from methods.kv_transfer import own_projection
from methods.modeldiff import Distance, Model, compare
from methods.ownership import SharedNetwork
from methods.rules import (
    BY_LABELS,
    BY_PROBES,
    BY_RECORD,
    BY_SIMILARITY,
    EXPENSIVE,
    LABELS,
    RACE,
    RULES,
    SCORES,
    choose,
    distance_bytes,
    ranking,
    score_of,
)
from pipeline.architectures import PLAIN, SHARABLE, requested_architecture, resolved_mutations
from pipeline.choices import GIVEN, Choices, write_scores
from pipeline.flags import add_search, changed
from pipeline.fleet import (
    candidates_of,
    check_of_fleet,
    check_text_encoder,
    fleet_paths,
    named_backbone,
    paths_of,
    selected_tasks,
)
from pipeline.named_files import check_search_files
from pipeline.probes import SharedProbes
from pipeline.race import Finish, Runner
from pipeline.recipe import (
    LabelledSampleRecipe,
    ProbesRecipe,
    RaceRecipe,
    RunRecipe,
    SamplesRecipe,
    SearchRecipe,
    recorded_freed,
    recorded_probes,
)
from pipeline.scores import (
    PRUNE_REMEDY,
    CandidateNetworks,
    Costs,
    LabelledSample,
    PrunedNetwork,
    Scores,
    label_scores,
    load_pruned,
    record_scores,
    similarity_scores,
)
from training.checkpoints import fingerprint, load_checkpoint
from training.loop import Compute
from training.outputs import Unfinished
from utils import logs
from utils.errors import UserError
from utils.folders import alone_in
from utils.paths import checkpoint_in
from utils.runtime import resolve_device, set_up_process
from utils.seeds import derive_seed
from utils.tensor_files import Damaged


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the search for a backbone."""
    add_search(parser, rules=RULES)


def run(args: argparse.Namespace) -> None:
    """Choose a backbone for every target; with `--list_unfinished`, only list those without one."""
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    table = load_table(args.dataset_config, data_root=args.data_root)
    search = Search(args, table=table)
    check_search_files(args, paths=search.paths, config=table.name)
    if args.list_unfinished:
        for target in search.targets:
            if search.has_work_left(target):
                sys.stdout.write(f"{target.name}\n")
        return
    with logs.to_file(search.paths.stage_log(table.name, "find_backbone")):
        logs.configuration(changed(args))
        logs.protocol(args.protocol)
        for target in search.targets:
            result = search.choices.last.path
            with alone_in(result.parent, part=f"{result.name}.{target.id}"):
                search.find(target)


@dataclass(frozen=True)
class ScratchNetwork:
    """A task's scratch network with its probes.

    Attributes:
        stamp: fingerprints of the network and of the task's samples.
        samples: all of the task's samples, as recipes record them.
        smallest_class: number of training samples in the smallest class, without those held out.
        sample: a target's training samples, for rules by labels; None for other tasks.
        projection: the task's own K/V projection, for a race with K/V transfers; otherwise empty.
    """

    model: Model
    stamp: str
    samples: SamplesRecipe
    smallest_class: int
    sample: LabelledSample | None
    projection: Mapping[str, Tensor]


class Search:
    """The networks of a table's tasks, each loaded once, and the choices among them."""

    def __init__(self, args: argparse.Namespace, *, table: Table) -> None:
        self.args = args
        self.table = table
        self.targets = selected_tasks(args, table, spec=args.target_id)
        self.paths = paths_of(args)
        self.own = CandidateNetworks(self.paths, table.name, args.baseline_folder)
        self.fleet = self.own
        if args.fleet is not None:
            self.fleet = CandidateNetworks(fleet_paths(args), table.name)
        self.build, self.sharable = (
            requested_architecture(args, layers=layers, in_channels=table.channels, size=table.size)
            for layers in (PLAIN, SHARABLE)
        )
        self.mutations = resolved_mutations(args.max_iterations, build=self.build)
        self.probes = ProbesRecipe(
            val_batch_size=args.val_batch_size,
            seed=args.seed,
            protocol=args.protocol,
            probes=recorded_probes(args.probes),
        )
        self.sample = LabelledSampleRecipe(rule_samples=args.rule_samples)
        self.compute = Compute(device=resolve_device(args.device), precision=args.precision)
        self.shared = SharedProbes(
            self.probes,
            pool=args.public_probes,
            table=table,
            data_root=args.data_root,
            text_encoder=args.text_encoder,
            device=self.compute.device,
        )
        self.rule: str = GIVEN if args.backbone else args.select
        # The rule whose scores are needed: of a race, the one that admits candidates to it, if any.
        self.scored_by: str | None = args.race_rule if self.rule == RACE else self.rule
        self.choices = Choices(
            paths=self.paths,
            config=table.name,
            among=args.candidates.among,
            rule=self.rule,
            path=args.csv_path,
        )
        self._scratch: dict[Path, ScratchNetwork] = {}
        self._pruned: dict[int, PrunedNetwork | UserError] = {}

    def find(self, target: Task) -> None:
        """Score the target's candidates, choose a backbone, and write both to the CSV files."""
        candidates = candidates_of(target, self.args, table=self.table)
        recipe = self.recipe(target, candidates)
        if self.is_finished(target, recipe):
            return
        if self.args.list_unfinished:
            raise Unfinished
        scores, costs = self.measure(target, candidates, recipe=recipe)
        finishes: dict[int, Finish] = {}
        if recipe.race is not None:
            finishes = self.race(target, candidates, scores, recipe=recipe.race, costs=costs)
        for candidate, finish in finishes.items():
            scores[candidate][RACE] = finish.accuracy
        for candidate, found in scores.items():
            logging.info("DDV cos-cos [%d => %d] %.5f", candidate, target.id, found["ddv_cos"])
            logging.info("DDV euc-cos [%d => %d] %.5f", candidate, target.id, found["ddv_euc"])
        logging.info("Cost of the scores of %d candidates for target %d: %s", len(scores), target.id, costs)
        chosen = self.choose(target, scores, losses={task: finish.loss for task, finish in finishes.items()})
        self.write_scores(target, candidates, scores, recipe=recipe)
        self.choices.write(target.id, str(chosen), recipe.stamp())
        label = LABELS.get(self.rule, self.rule)
        logging.info(
            "Selected backbone for target %d = (%s) %d (%s on %s)",
            *(target.id, label, chosen, target.name, self.table.task(chosen).name),
        )

    def has_work_left(self, target: Task) -> bool:
        """Whether the target has no backbone yet. An error counts as work left: `find` reports it."""
        try:
            self.find(target)
        except (Unfinished, UserError):
            return True
        return False

    def recipe(self, target: Task, candidates: Sequence[Task]) -> SearchRecipe:
        """The recipe of the choice."""
        args = self.args
        networks = self.scratch(target, self.own), *(self.scratch(task, self.fleet) for task in candidates)
        by_labels = self.scored_by in BY_LABELS
        pruned = by_labels or self.scored_by in BY_RECORD or self.rule == RACE
        return SearchRecipe(
            candidates=tuple(task.id for task in candidates),
            networks=tuple(network.stamp for network in networks),
            max_iterations=self.mutations,
            probes=self.shared.recorded(target, candidates),
            epsilon=args.epsilon,
            precision=args.precision,
            nondeterministic=args.nondeterministic,
            select=f"backbone {self.given(target).name}" if args.backbone else args.select,
            pruned=tuple(self.pruned(task).stamp for task in self.scored(candidates, target) if pruned),
            sample=self.sample if by_labels else None,
            race=self.race_recipe(target) if self.rule == RACE else None,
        )

    def race_recipe(self, target: Task) -> RaceRecipe:
        """The recipe of the target's race.

        Raises:
            UserError: if a class has no training sample left when one is held out.
        """
        args, own = self.args, self.scratch(target, self.own)
        if self.probes.protocol == "published" and own.smallest_class < 2:
            raise UserError(_too_few(target, rule=RACE))
        return RaceRecipe(
            run=RunRecipe.from_args(args, build=self.sharable),
            samples=own.samples,
            race_epochs=args.race_epochs,
            race_among=args.race_among,
            race_rule=args.race_rule,
            lr=args.lr,
            lr_mask=args.lr_mask,
            freed=recorded_freed(args.freed),
        )

    def scored(self, candidates: Sequence[Task], target: Task) -> Sequence[Task]:
        """The candidates that the rule has a score for.

        Raises:
            UserError: if the rule needs candidates that read the target's samples, and there are none.
        """
        if self.rule not in (*BY_SIMILARITY, *BY_LABELS, RACE):
            return candidates
        found = of_modality(candidates, target)
        if not found:
            raise UserError(
                f"--select {self.rule} needs candidates that read {target.modality}s, and target "
                f"{target.name} has none: choose another rule or other --candidates"
            )
        return found

    def measure(
        self, target: Task, candidates: Sequence[Task], *, recipe: SearchRecipe
    ) -> tuple[Scores, Costs]:
        """All requested scores of `candidates` for `target`, and what they cost."""
        costs = Costs()
        model = self.compared(target, self.own, target=target)
        own_probes = self.probes.probes is None
        wanted = self.wanted()
        if not own_probes and self.scored_by not in BY_PROBES:
            logging.info(
                "The rule %s ignores probes: --probes %s only changes the scores of other rules",
                *(self.rule, self.probes.probes),
            )
        with costs.timed("ddv"):
            distances = self.distances(target, candidates, recipe=recipe)
        scores: Scores = {item.candidate: {"ddv_cos": item.cos, "ddv_euc": item.euc} for item in distances}
        for task in candidates:
            size = distance_bytes(
                self.compared(task, self.fleet, target=target),
                model,
                iterations=recipe.max_iterations,
                classes=task.num_classes,
                own_probes=own_probes,
            )
            costs.send("ddv", size)
        readable = of_modality(candidates, target)
        if len(readable) < len(candidates) and wanted & {*BY_SIMILARITY, *BY_LABELS, RACE}:
            logging.info(
                "%d candidates of target %d do not read %ss: they have no scores of probes, labels or races",
                len(candidates) - len(readable),
                target.id,
                target.modality,
            )
        groups = [
            similarity_scores(
                [self.compared(task, self.fleet, target=target) for task in readable],
                model,
                names=[name for name in BY_SIMILARITY if name in wanted],
                compute=self.compute,
                costs=costs,
                own_probes=own_probes,
            )
        ]
        if wanted & {*BY_LABELS, *BY_RECORD}:
            pruned = self.pruned_networks(candidates)
            groups.append(
                label_scores(
                    {task.id: pruned[task.id] for task in readable if task.id in pruned},
                    self.scratch(target, self.own).sample,
                    names=self.by_labels(target),
                    compute=self.compute,
                    costs=costs,
                )
            )
            groups.append(record_scores(pruned, costs=costs))
        for group in groups:
            for candidate, found in group.items():
                scores[candidate] |= found
        return scores, costs

    def race(
        self,
        target: Task,
        candidates: Sequence[Task],
        scores: Scores,
        *,
        recipe: RaceRecipe,
        costs: Costs,
    ) -> dict[int, Finish]:
        """Train the target on the candidates for a few epochs.

        Returns:
            Candidate's id → how well the target did on it, without those on which the loss diverged.
        """
        among = of_modality(candidates, target)
        if recipe.race_among is not None:
            admitted = self.admitted(target, {task.id: scores[task.id] for task in among}, recipe=recipe)
            among = [task for task in among if task.id in admitted]
        # Never the test samples, whatever the protocol.
        data = load_task(
            self.table,
            target,
            data_root=self.args.data_root,
            protocol="heldout",
            seed=self.probes.seed,
            train_per_class=self.args.train_per_class,
            device=self.compute.device,
            text_encoder=self.args.text_encoder,
        )
        runner = Runner(
            target=target,
            recipe=recipe,
            batches=Batches(data, batch_size=recipe.run.batch_size),
            build=self.sharable,
            projection=self.scratch(target, self.own).projection,
            compute=self.compute,
        )
        finishes: dict[int, Finish] = {}
        for task in among:
            with costs.timed(RACE):
                finish = runner.finish_on(task, checkpoint_in(self.fleet.pruned(task), remedy=PRUNE_REMEDY))
            costs.send(RACE, self.pruned(task).size)
            if finish is None:
                continue
            finishes[task.id] = finish
            logging.info(
                "Race [%d => %d] accuracy %.4f, loss %.4f on %d held-out samples after %d epochs",
                *(task.id, target.id, finish.accuracy, finish.loss, len(data.validation), recipe.race_epochs),
            )
        return finishes

    def admitted(self, target: Task, scores: Scores, *, recipe: RaceRecipe) -> Sequence[int]:
        """Ids of the candidates that take part in the race: the best by another rule."""
        known = self.known(target, scores, rule=recipe.race_rule)
        ranked = ranking(known, rule=recipe.race_rule, seed=self.seed_of_choice(target))
        return ranked[: recipe.race_among]

    def wanted(self) -> set[str]:
        """Names of the scores to compute."""
        chosen = {score_of(rule) for rule in {self.rule, self.scored_by} - {GIVEN, None}}
        others = {"chosen": set(), "cheap": {*SCORES} - {*EXPENSIVE, RACE}, "all": {*SCORES} - {RACE}}
        return others[self.args.scores] | chosen

    def by_labels(self, target: Task) -> Sequence[str]:
        """The scores by labels to compute: none if a class has a single sample.

        Raises:
            UserError: if the rule needs them.
        """
        names = [name for name in BY_LABELS if name in self.wanted()]
        fewest = self.scratch(target, self.own).sample.fewest
        if names and fewest < 2:
            if self.scored_by in BY_LABELS:
                raise UserError(_too_few(target, rule=self.scored_by))
            logging.info("%s: its candidates have no scores by labels", _single_sample(target))
            return ()
        return names

    def choose(self, target: Task, scores: Scores, *, losses: Mapping[int, float]) -> int:
        """The id of the chosen candidate.

        Args:
            losses: candidate's id → loss after a race.
        """
        if self.rule == GIVEN:
            return self.given(target).id
        known = self.known(target, scores, rule=self.rule)
        return choose(known, rule=self.rule, seed=self.seed_of_choice(target), losses=losses)

    def seed_of_choice(self, target: Task) -> int:
        """Seed of a random choice."""
        return derive_seed(self.probes.seed, self.table.name, target.name, "choice")

    def known(self, target: Task, scores: Scores, *, rule: str) -> dict[int, float]:
        """Candidate's id → the score that a rule goes by, of the candidates that have it.

        Raises:
            UserError: if none has it.
        """
        name = score_of(rule)
        known = {
            candidate: 0.0 if name is None else found[name]
            for candidate, found in scores.items()
            if name is None or name in found
        }
        if not known and rule == RACE:
            raise UserError(f"--select race: every candidate of target {target.name} diverged: lower --lr")
        if not known:
            raise UserError(
                f"--select {self.rule}: no candidate of target {target.name} records its {rule}: redo stage "
                "2, or choose another rule"
            )
        return known

    def distances(self, target: Task, candidates: Sequence[Task], *, recipe: SearchRecipe) -> list[Distance]:
        """Distances of `candidates` from `target`, with as many probes from each as both have."""
        model = self.compared(target, self.own, target=target)
        by_count: dict[int, list[Model]] = {}
        for task in candidates:
            candidate = self.compared(task, self.fleet, target=target)
            count = min(len(candidate.probes), len(model.probes))
            by_count.setdefault(count, []).append(replace(candidate, probes=candidate.probes[:count]))
        names = {task.id: (self.probes.seed, self.table.name, target.name, task.name) for task in candidates}
        distances: list[Distance] = []
        for count, models in by_count.items():
            seeds = [derive_seed(*names[candidate.id], "mutations") for candidate in models]
            with self.compute.autocast:
                distances += compare(
                    models,
                    replace(model, probes=model.probes[:count]),
                    iterations=recipe.max_iterations,
                    epsilon=recipe.epsilon,
                    seeds=seeds,
                )
        return sorted(distances, key=lambda distance: distance.candidate)

    def given(self, target: Task) -> Task:
        """The task that --backbone names."""
        return named_backbone(self.args.backbone, table=self.table, target=target)

    def is_finished(self, target: Task, recipe: SearchRecipe) -> bool:
        """Whether the rule has chosen already; refuses a choice made with another recipe."""
        if self.args.overwrite:
            return False
        chosen = self.choices.finished(target.id, recipe.stamp())
        if chosen is None:
            return False
        self.choices.keep(target.id, chosen, recipe.stamp(), listing=self.args.list_unfinished)
        logging.info("The backbone of target %d is chosen: skipped (--overwrite redoes it)", target.id)
        logging.info(
            "Selected backbone for target %d = (as before) %s (%s on %s)",
            *(target.id, chosen, target.name, self.table.task(chosen).name),
        )
        return True

    def write_scores(
        self, target: Task, candidates: Sequence[Task], scores: Scores, *, recipe: SearchRecipe
    ) -> None:
        """Write the scores to their CSV, replacing the target's earlier ones."""
        loaded = [self._pruned.get(task.id) for task in candidates]
        made_with = replace(
            recipe,
            select="",
            pruned=tuple(found.stamp if isinstance(found, PrunedNetwork) else "" for found in loaded),
            sample=self.sample,
            race=None,
        )
        path = self.paths.table_csv(self.table.name, among=self.args.candidates.among)
        write_scores(path, target.id, scores, stamp=made_with.stamp())

    def pruned(self, task: Task) -> PrunedNetwork:
        """A candidate's pruned network.

        Raises:
            UserError: if it is missing or damaged.
        """
        if task.id not in self._pruned:
            device = self.compute.device
            try:
                self._pruned[task.id] = load_pruned(
                    self.fleet.pruned(task), task, build=self.sharable, device=device
                )
            except UserError as error:
                self._pruned[task.id] = error
        found = self._pruned[task.id]
        if isinstance(found, UserError):
            raise found
        return found

    def pruned_networks(self, candidates: Sequence[Task]) -> dict[int, PrunedNetwork]:
        """The candidates' pruned networks, without those that cannot be read. Those that a rule needs can."""
        found: dict[int, PrunedNetwork] = {}
        problems: list[UserError] = []
        for task in candidates:
            try:
                found[task.id] = self.pruned(task)
            except UserError as error:
                problems.append(error)
        if problems:
            # A stage not run yet is no reason to warn.
            level = logging.WARNING if any(isinstance(error, Damaged) for error in problems) else logging.INFO
            text = "No scores from the pruned networks of %d candidates: %s"
            logging.log(level, text, len(problems), problems[0])
        return found

    def compared(self, task: Task, networks: CandidateNetworks, *, target: Task) -> Model:
        """A task's scratch network with the probes that it contributes to the comparison with `target`."""
        return self.shared.given_to(self.scratch(task, networks).model, target=target)

    def scratch(self, task: Task, networks: CandidateNetworks) -> ScratchNetwork:
        """A task's scratch network with its probes."""
        folder = networks.scratch(task)
        if folder in self._scratch:
            return self._scratch[folder]
        path = checkpoint_in(folder, remedy="run run_pickaback/baseline.sh for this task first")
        payload = load_checkpoint(path, architecture=self.args.arch, layers=PLAIN, sizes=self.build.sizes)
        shared = SharedNetwork.from_payload(payload, build=self.build, source=path).to(self.compute.device)
        made = self.made_elsewhere(payload, path, networks)
        data = load_task(
            self.table,
            task,
            data_root=self.args.data_root,
            protocol=made.get("protocol", self.probes.protocol),
            seed=made.get("seed", self.probes.seed),
            train_per_class=made.get("train_per_class", 0) if made else self.args.train_per_class,
            device=torch.device("cpu"),
            text_encoder=self.args.text_encoder,
        )
        check_text_encoder(payload, task=task, identity=data.encoder_identity, where=path)
        count = self.probes.val_batch_size
        if len(data.validation) < count and self.probes.probes is None:
            logging.info(
                "Task %s has only %d samples to use as probes, not %d", task.name, len(data.validation), count
            )
        probes = data.first_inputs(count).to(self.compute.device)
        transfers = self.rule == RACE and self.build.multimodal
        is_target = task in self.targets and not self.args.list_unfinished
        seed = derive_seed(self.probes.seed, self.table.name, task.name, "rule samples")
        self._scratch[folder] = ScratchNetwork(
            model=Model(id=task.id, network=shared.as_task(task.name), probes=probes),
            stamp=f"{fingerprint(payload)} on {data.fingerprint[:16]}",
            samples=SamplesRecipe.of(data),
            smallest_class=int(data.train.labels.bincount(minlength=task.num_classes).min()),
            sample=LabelledSample.draw(data, self.sample.rule_samples, seed=seed) if is_target else None,
            projection=own_projection(shared, task.name) if transfers else {},
        )
        return self._scratch[folder]

    def made_elsewhere(self, payload: dict, path: Path, networks: CandidateNetworks) -> dict[str, Any]:
        """The arguments that made a network of another run, which drew its own samples; {} for this run."""
        if networks is self.own:
            return {}
        check_of_fleet(payload, self.args, where=path)
        return payload.get("arguments", {})


def of_modality(candidates: Sequence[Task], target: Task) -> Sequence[Task]:
    """The candidates whose networks read the target's samples."""
    return [task for task in candidates if task.modality == target.modality]


def _single_sample(target: Task) -> str:
    return f"target {target.name} has a class with a single training sample"


def _too_few(target: Task, *, rule: str) -> str:
    return f"{_single_sample(target)}: --select {rule} needs two per class: choose another rule"
