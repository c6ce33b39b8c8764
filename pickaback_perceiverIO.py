#!/usr/bin/env python3
"""Stage 3-1: choose the backbone of every target by comparing scratch networks (ModelDiff).

Images against images, and, with an architecture that reads several modalities, any against any.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.loading import load_task
from data.tables import Table, Task, load_table
from methods.modeldiff import RULES, Distance, Model, choose, compare
from methods.ownership import SharedNetwork
from packnet_models import ARCHITECTURES
from tools.task_run import check_text_encoder, named_backbone
from utils import arguments, errors, logs
from utils.checkpoints import fingerprint, load_checkpoint
from utils.errors import UserError
from utils.files import read_csv, read_json, update_csv, update_json
from utils.paths import arguments_file, checkpoint_in
from utils.runs import require_same
from utils.runtime import autocast, resolve_device, set_threads
from utils.seeds import derive_seed

LAYERS = "plain"
RESULT_COLUMNS = ("target_id", "task_id")
TABLE_COLUMNS = ("target_id", "task_id", "ddv_cos", "ddv_euc")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logs.to_terminal()
    set_threads(args.threads)
    table = load_table(args.dataset_config, data_root=args.data_root)
    search = Search(args, table=table)
    with logs.to_file(search.paths.stage_log(table.name, "find_backbone")):
        logs.configuration(vars(args))
        logs.protocol(args.protocol)
        for target in table.select(args.target_id or args.dataset):
            search.find(target)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    arguments.add_common(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--target_id", help="The targets: ids, names or ranges (default: --dataset).")
    arguments.add_candidates(
        group,
        help="Tasks that may become the backbone: names, ids, ranges or all; `same` or `other` among them "
        "narrows them to those of the same modality as the target's, or of the other, and the choice goes "
        "into files of its own.",
    )
    group.add_argument(
        "--baseline_folder",
        type=Path,
        help="Folder of the scratch networks, <task>/checkpoint-<epoch>.pth.tar (default: by the layout).",
    )
    arguments.add_mutations(group)
    group.add_argument("--epsilon", type=arguments.positive_float, default=0.1, help="Size of a mutation.")
    group.add_argument(
        "--val_batch_size", type=arguments.positive_int, default=50, help="Probes from each side."
    )
    group.add_argument(
        "--select",
        choices=RULES,
        default="farthest",
        help="Which candidate: the largest distance, as the published code has it, the smallest, or any.",
    )
    group.add_argument("--backbone", help="Choose this task whatever its distance (default: by --select).")
    group.add_argument(
        "--csv_path", type=Path, help="CSV file of the chosen backbones (default: by the layout)."
    )
    return parser.parse_args(argv)


class Search:
    """The scratch networks of a table, loaded once, and what is found among them."""

    def __init__(self, args: argparse.Namespace, *, table: Table) -> None:
        self.args = args
        self.table = table
        self.paths = arguments.paths_of(args)
        self.build = arguments.asked_architecture(
            ARCHITECTURES, args, in_channels=table.channels, size=table.size
        )
        self.mutations = arguments.mutations(args.max_iterations, build=self.build)
        self.device = resolve_device(args.device)
        self.result = arguments.pairs_file(args, table.name)
        self._models: dict[int, tuple[Model, str]] = {}

    def find(self, target: Task) -> None:
        """Measure all distances to `target`, choose, and enter both in the CSV files."""
        spec, among = self.args.candidates.tasks, self.args.candidates.among
        candidates = self.table.candidates(spec, target=target, among=among)
        if not candidates:
            raise UserError(f"--candidates {self.args.candidates} leaves none for target {target.name}")
        asked = self.deciders(target, candidates)
        if self.is_finished(target, asked):
            return
        distances = self.measure(target, candidates)
        for measured in distances:
            logging.info("DDV cos-cos [%d => %d] %.5f", measured.candidate, target.id, measured.cos)
            logging.info("DDV euc-cos [%d => %d] %.5f", measured.candidate, target.id, measured.euc)
        if self.args.backbone:
            rule, chosen = "given", self.given(target).id
        else:
            seed = derive_seed(self.args.seed, self.table.name, target.name, "choice")
            rule, chosen = self.args.select, choose(distances, rule=self.args.select, seed=seed)
        self.write(target, distances, chosen, asked)
        label = "euc" if rule in ("farthest", "nearest") else rule
        logging.info("Selected backbone for target %d = (%s) %d", target.id, label, chosen)

    def measure(self, target: Task, candidates: Sequence[Task]) -> list[Distance]:
        """The distances of `candidates` from `target`, on as many probes from each as both have."""
        model, _ = self.model(target)
        by_count: dict[int, list[Model]] = {}
        for task in candidates:
            candidate, _ = self.model(task)
            count = min(len(candidate.probes), len(model.probes))
            by_count.setdefault(count, []).append(replace(candidate, probes=candidate.probes[:count]))
        names = {task.id: (self.args.seed, self.table.name, target.name, task.name) for task in candidates}
        distances: list[Distance] = []
        for count, models in by_count.items():
            seeds = [derive_seed(*names[candidate.id], "mutations") for candidate in models]
            with autocast(self.device, self.args.precision):
                distances += compare(
                    models,
                    replace(model, probes=model.probes[:count]),
                    iterations=self.mutations,
                    epsilon=self.args.epsilon,
                    seeds=seeds,
                )
        return sorted(distances, key=lambda distance: distance.candidate)

    def given(self, target: Task) -> Task:
        """The task that --backbone names."""
        return named_backbone(self.args.backbone, table=self.table, target=target)

    def deciders(self, target: Task, candidates: Sequence[Task]) -> dict:
        """What the choice depends on."""
        args = self.args
        return {
            "candidates": [task.id for task in candidates],
            "networks": [self.model(task)[1] for task in (target, *candidates)],
            "max_iterations": self.mutations,
            "epsilon": args.epsilon,
            "val_batch_size": args.val_batch_size,
            "seed": args.seed,
            "protocol": args.protocol,
            "precision": args.precision,
            "select": f"backbone {self.given(target).name}" if args.backbone else args.select,
        }

    def is_finished(self, target: Task, asked: dict) -> bool:
        """Whether the choice stands already; refuses one made with other arguments."""
        if self.args.overwrite or not self.result.exists():
            return False
        rows = read_csv(self.result, columns=RESULT_COLUMNS, remedy="delete it to start a new one")
        rows = [row for row in rows if row["target_id"] == str(target.id)]
        if not rows:
            return False
        made_with = {}
        if arguments_file(self.result).exists():
            made_with = read_json(arguments_file(self.result), remedy="delete it").get(str(target.id), {})
        require_same(made_with, asked, where=self.result)
        logging.info("The backbone of target %d is chosen: skipped (--overwrite redoes it)", target.id)
        logging.info("Selected backbone for target %d = (as before) %s", target.id, rows[0]["task_id"])
        return True

    def write(self, target: Task, distances: Sequence, chosen: int, asked: dict) -> None:
        """Enter distances and choice in the CSV files, in place of earlier ones of the target."""
        replace = {"target_id": str(target.id)}
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
        update_csv(table, rows, columns=TABLE_COLUMNS, replace=replace)
        row = {"target_id": target.id, "task_id": chosen}
        # An earlier row goes first: killed in between, it must not stand beside the new arguments.
        update_csv(self.result, [], columns=RESULT_COLUMNS, replace=replace)
        update_json(arguments_file(self.result), {str(target.id): asked})
        update_csv(self.result, [row], columns=RESULT_COLUMNS, replace=replace)

    def model(self, task: Task) -> tuple[Model, str]:
        """A task's scratch network with its probes, and the fingerprints of both."""
        if task.id in self._models:
            return self._models[task.id]
        folder = (self.args.baseline_folder or self.paths.baselines(self.table.name)) / task.name
        path = checkpoint_in(folder, remedy="run run_pickaback/baseline.sh for this task first")
        payload = load_checkpoint(path, architecture=self.args.arch, layers=LAYERS, sizes=self.build.sizes)
        shared = SharedNetwork.from_payload(payload, build=self.build, source=path).to(self.device)
        data = load_task(
            self.table,
            task,
            data_root=self.args.data_root,
            protocol=self.args.protocol,
            seed=self.args.seed,
            device=torch.device("cpu"),
            text_encoder=self.args.text_encoder,
        )
        check_text_encoder(payload, task=task, encoder=data.encoder, where=path)
        count = self.args.val_batch_size
        if len(data.validation) < count:
            logging.info(
                "Task %s has %d samples to probe with, not %d", task.name, len(data.validation), count
            )
        probes = data.first_inputs(count).to(self.device)
        model = Model(id=task.id, network=shared.as_task(task.name), probes=probes)
        self._models[task.id] = model, f"{fingerprint(payload)} on {data.fingerprint[:16]}"
        return self._models[task.id]


if __name__ == "__main__":
    errors.run(main)
