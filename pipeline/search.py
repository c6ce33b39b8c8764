"""Stage 3-1: choose the backbone of every target by comparing scratch networks (ModelDiff)."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from data.loading import load_task
from data.tables import Table, Task, load_table
from methods.modeldiff import RULES, Distance, Model, choose, compare
from methods.ownership import SharedNetwork
from pipeline.architectures import PLAIN, requested_architecture, resolved_mutations
from pipeline.flags import add_search
from pipeline.fleet import (
    CHOSEN,
    check_text_encoder,
    named_backbone,
    pairs_file,
    paths_of,
    read_arguments,
    selected_tasks,
)
from pipeline.named_files import check_search_files
from pipeline.recipe import ProbesRecipe, SearchRecipe
from training.checkpoints import fingerprint, load_checkpoint
from training.loop import Compute
from training.outputs import Unfinished, require_same
from utils import logs
from utils.errors import UserError
from utils.files import read_csv, update_csv, update_json
from utils.folders import alone_in
from utils.paths import arguments_file, checkpoint_in
from utils.runtime import resolve_device, set_up_process
from utils.seeds import derive_seed

RESULT_COLUMNS = ("target_id", "task_id")
TABLE_COLUMNS = ("target_id", "task_id", "ddv_cos", "ddv_euc")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the search for a backbone."""
    add_search(parser, rules=RULES)


def run(args: argparse.Namespace) -> None:
    """Choose a backbone for every target; with `--list_unfinished`, only list those without one."""
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    table = load_table(args.dataset_config, data_root=args.data_root)
    search = Search(args, table=table)
    check_search_files(args, paths=search.paths, config=table.name)
    targets = selected_tasks(args, table, spec=args.target_id)
    if args.list_unfinished:
        for target in targets:
            if search.has_work_left(target):
                sys.stdout.write(f"{target.name}\n")
        return
    with logs.to_file(search.paths.stage_log(table.name, "find_backbone")):
        logs.configuration(vars(args))
        logs.protocol(args.protocol)
        for target in targets:
            with alone_in(search.result.parent, part=f"{search.result.name}.{target.id}"):
                search.find(target)


class Search:
    """The scratch networks of a table, each loaded once, and the choices among them."""

    def __init__(self, args: argparse.Namespace, *, table: Table) -> None:
        self.args = args
        self.table = table
        self.paths = paths_of(args)
        self.build = requested_architecture(args, layers=PLAIN, in_channels=table.channels, size=table.size)
        self.mutations = resolved_mutations(args.max_iterations, build=self.build)
        self.probes = ProbesRecipe(val_batch_size=args.val_batch_size, seed=args.seed, protocol=args.protocol)
        self.compute = Compute(device=resolve_device(args.device), precision=args.precision)
        self.result = pairs_file(args, table.name)
        self._models: dict[int, tuple[Model, str]] = {}

    def find(self, target: Task) -> None:
        """Measure all distances to `target`, choose a backbone, and write both to the CSV files."""
        spec, among = self.args.candidates.tasks, self.args.candidates.among
        candidates = self.table.candidates(spec, target=target, among=among)
        if not candidates:
            raise UserError(f"--candidates {self.args.candidates} leaves none for target {target.name}")
        recipe = self.recipe(target, candidates)
        if self.is_finished(target, recipe):
            return
        if self.args.list_unfinished:
            raise Unfinished
        distances = self.measure(target, candidates, recipe=recipe)
        for measured in distances:
            logging.info("DDV cos-cos [%d => %d] %.5f", measured.candidate, target.id, measured.cos)
            logging.info("DDV euc-cos [%d => %d] %.5f", measured.candidate, target.id, measured.euc)
        if self.args.backbone:
            rule, chosen = "given", self.given(target).id
        else:
            seed = derive_seed(self.probes.seed, self.table.name, target.name, "choice")
            rule, chosen = recipe.select, choose(distances, rule=recipe.select, seed=seed)
        self.write(target, distances, chosen, recipe)
        label = "euc" if rule in ("farthest", "nearest") else rule
        logging.info("Selected backbone for target %d = (%s) %d", target.id, label, chosen)

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
        return SearchRecipe(
            candidates=tuple(task.id for task in candidates),
            networks=tuple(self.model(task)[1] for task in (target, *candidates)),
            max_iterations=self.mutations,
            probes=self.probes,
            epsilon=args.epsilon,
            precision=args.precision,
            nondeterministic=args.nondeterministic,
            select=f"backbone {self.given(target).name}" if args.backbone else args.select,
        )

    def measure(self, target: Task, candidates: Sequence[Task], *, recipe: SearchRecipe) -> list[Distance]:
        """Distances of `candidates` from `target`, with as many probes from each as both have."""
        model, _ = self.model(target)
        by_count: dict[int, list[Model]] = {}
        for task in candidates:
            candidate, _ = self.model(task)
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
        """Whether the choice is made; refuses one made with another recipe."""
        if self.args.overwrite or not self.result.exists():
            return False
        rows = read_csv(self.result, columns=RESULT_COLUMNS, remedy="delete it to start a new one")
        rows = [row for row in rows if row["target_id"] == str(target.id)]
        if not rows:
            return False
        made_with = read_arguments(arguments_file(self.result), str(target.id))
        made_with.pop(CHOSEN, None)
        require_same(made_with, recipe.stamp(), where=self.result)
        logging.info("The backbone of target %d is chosen: skipped (--overwrite redoes it)", target.id)
        logging.info("Selected backbone for target %d = (as before) %s", target.id, rows[0]["task_id"])
        return True

    def write(self, target: Task, distances: Sequence[Distance], chosen: int, recipe: SearchRecipe) -> None:
        """Write distances and choice to the CSV files, replacing the target's earlier ones."""
        replaced = {"target_id": str(target.id)}
        rows = [
            {
                "target_id": target.id,
                "task_id": item.candidate,
                "ddv_cos": f"{item.cos:.6f}",
                "ddv_euc": f"{item.euc:.6f}",
            }
            for item in distances
        ]
        table = self.paths.table_csv(self.table.name, among=self.args.candidates.among)
        update_csv(table, rows, columns=TABLE_COLUMNS, replace=replaced)
        row = {"target_id": target.id, "task_id": chosen}
        # Remove the earlier row first: a kill in between must not leave it with the new recipe.
        update_csv(self.result, [], columns=RESULT_COLUMNS, replace=replaced)
        update_json(arguments_file(self.result), {str(target.id): recipe.stamp() | {CHOSEN: chosen}})
        update_csv(self.result, [row], columns=RESULT_COLUMNS, replace=replaced)

    def model(self, task: Task) -> tuple[Model, str]:
        """A task's scratch network with its probes, and the fingerprints of both."""
        if task.id in self._models:
            return self._models[task.id]
        folder = (self.args.baseline_folder or self.paths.baselines(self.table.name)) / task.name
        path = checkpoint_in(folder, remedy="run run_pickaback/baseline.sh for this task first")
        payload = load_checkpoint(path, architecture=self.args.arch, layers=PLAIN, sizes=self.build.sizes)
        shared = SharedNetwork.from_payload(payload, build=self.build, source=path).to(self.compute.device)
        data = load_task(
            self.table,
            task,
            data_root=self.args.data_root,
            protocol=self.probes.protocol,
            seed=self.probes.seed,
            device=torch.device("cpu"),
            text_encoder=self.args.text_encoder,
        )
        check_text_encoder(payload, task=task, identity=data.encoder_identity, where=path)
        count = self.probes.val_batch_size
        if len(data.validation) < count:
            logging.info(
                "Task %s has only %d samples to use as probes, not %d", task.name, len(data.validation), count
            )
        probes = data.first_inputs(count).to(self.compute.device)
        model = Model(id=task.id, network=shared.as_task(task.name), probes=probes)
        self._models[task.id] = model, f"{fingerprint(payload)} on {data.fingerprint[:16]}"
        return self._models[task.id]
