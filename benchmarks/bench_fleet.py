"""Measure what the stages cost beside training, by the number of tasks in the table.

    python -m benchmarks.bench_fleet --tasks 20 200 2000 --to scaling.csv
    python -m benchmarks.bench_fleet --draw scaling.csv --figure docs/images/scaling.svg

Makes tables of synthetic tasks with networks of 324 weights. The stages write all files themselves; only
the training loop is replaced, so the networks stay as they were initialised. Then each operation runs in a
process of its own that has loaded PyTorch already. Drawing and the HTML report need the `report` extra.
"""

import argparse
import csv
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from benchmarks.tiny_net import SIZE
from data import cache
from data.tables import load_table
from methods.gradual_pruning import GradualPruning
from methods.rules import SCORES
from pipeline import flags, train_task
from pipeline.architectures import PLAIN, SHARABLE, architecture
from pipeline.choices import RESULT_COLUMNS, TABLE_COLUMNS, ChoiceFile
from pipeline.fleet import CHOSEN, chosen_backbone
from tools import list_tasks, report, select_pruning_ratio
from training.loop import Learner, Observer, Progress
from utils import errors
from utils.architecture_names import FileArchitecture
from utils.errors import UserError
from utils.files import csv_text, update_csv, update_json, write_atomically
from utils.paths import REPOSITORY, Paths, arguments_file

CONFIG = "devices"
CLASSES = ("a", "b")
IMAGES = 10  # per class and split
SPARSITY = "0.5"
TARGETS = 20  # that search among all candidates
FINALISTS = 20
DRAWN = (
    *("choose, farthest with 100 mutations", "choose, cka then leep", "choose, cka"),
    *("skip stage 3-2", "table of results", "skip stage 1", "list the tasks", "load the table"),
)
ARCH = REPOSITORY / "benchmarks" / "tiny_net.py"
RUN = "tiny_net/seed1"
TRAINING = ("--epochs", "1", "--batch_size", "32")


@dataclass(frozen=True)
class Cost:
    """What one operation costs.

    Attributes:
        tasks: in the table.
        seconds: of CPU time.
        files: different files that it opened to read, below the bench's folder.
        reads: how often it opened them.
        megabytes: memory that it needed beyond that of a process with PyTorch.
    """

    tasks: int
    operation: str
    seconds: float
    files: int
    reads: int
    megabytes: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", type=flags.positive_int, nargs="+", default=[20, 200], help="Tasks.")
    parser.add_argument("--only", nargs="+", default=(), help="Operations to measure (default: all).")
    parser.add_argument("--to", type=Path, default=Path("scaling.csv"), help="CSV file of the costs.")
    parser.add_argument(
        "--folder", type=Path, help="Folder to keep the fleets in (default: a temporary one)."
    )
    parser.add_argument("--draw", type=Path, help="Draw the costs in this CSV file, and measure nothing.")
    parser.add_argument("--figure", type=Path, help="SVG file to draw to.")
    args = parser.parse_args(argv)
    if (args.draw is None) != (args.figure is None):
        parser.error("--draw and --figure go together")
    if args.draw:
        draw(read_costs(args.draw), args.figure)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the stages that it starts
    torch.set_num_threads(1)
    warm_up()
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in args.tasks:
            fleet = Fleet(args.folder or Path(temporary), tasks=count)
            for cost in fleet.costs(only=args.only):
                costs.append(cost)
                print(
                    f"{cost.tasks} tasks, {cost.operation}: {cost.seconds:.2f} s, {cost.files} files read "
                    f"{cost.reads} times, {cost.megabytes:.0f} MB",
                    flush=True,
                )
                write_atomically(
                    args.to, csv_text([asdict(cost) for cost in costs], [item.name for item in fields(Cost)])
                )
            for line in fleet.inventory():
                print(line)


def warm_up() -> None:
    """Load what takes seconds to load, so that no operation is charged with it."""
    tiny = FileArchitecture.parse(f"{ARCH}:tiny_net")
    for layers in (PLAIN, SHARABLE):
        architecture(tiny, layers=layers, in_channels=1, size=SIZE)


class Fleet:
    """A table of synthetic tasks with its files, and the operations on it."""

    def __init__(self, folder: Path, *, tasks: int) -> None:
        self.count = tasks
        self.root = folder.absolute() / str(tasks)
        self.table = self.root / f"{CONFIG}.toml"
        self.paths = Paths(
            checkpoints=self.root / "checkpoints", logs=self.root / "logs", data=self.root / "data", run=RUN
        )

    def costs(self, *, only: Sequence[str]) -> Iterator[Cost]:
        """Make the fleet, and measure its operations in turn, each on what those before it left."""
        for name, operation in self.operations().items():
            if not only or name in only:
                yield measured(operation, name=name, tasks=self.count, below=self.root)

    def operations(self) -> Mapping[str, Callable[[], object]]:
        """Name → operation."""
        search = {"--target_id": "1", "--scores": "chosen", "--max_iterations": "0"}
        step = ("--overwrite", "--select")
        two = ("--finalists", str(FINALISTS), "--first_rule", "cka")
        return {
            "make the table": self.make_table,
            "load the table": lambda: load_table(str(self.table), data_root=self.paths.data),
            "list the tasks": lambda: list_tasks.main(self.files("--dataset", "all")),
            "make stage 1": lambda: self.baselines(),
            "skip stage 1": lambda: self.baselines("--list_unfinished"),
            "make stage 2-1": lambda: self.own(),
            "skip stage 2-1": lambda: self.own("--list_unfinished"),
            "make stage 2-2": lambda: self.select(),
            "skip stage 2-2": lambda: self.select(),
            "choose, cka": lambda: self.search(search, *step, "cka"),
            "choose, farthest": lambda: self.search(search, *step, "farthest"),
            "choose, farthest with 100 mutations": lambda: self.search(
                search | {"--max_iterations": "100"}, *step, "farthest"
            ),
            "choose, leep": lambda: self.search(search, *step, "leep"),
            "choose, cka then leep": lambda: self.search(search, *step, "leep", *two),
            "choose, cka then race": lambda: self.search(
                search, *step, "race", *two, "--race_epochs", "1", "--batch_size", "32"
            ),
            "choose for 20 targets": lambda: self.search(
                search | {"--target_id": f"1-{min(TARGETS, self.count)}"}, *step, "cka"
            ),
            "skip 20 targets": lambda: self.search(
                search | {"--target_id": f"1-{min(TARGETS, self.count)}"},
                *("--select", "cka", "--list_unfinished"),
            ),
            "make the other choices": self.choose_at_random,
            "make stage 3-2": lambda: self.targets(),
            "skip stage 3-2": lambda: self.targets("--list_unfinished"),
            "a finished stage 1, with bash": self.stage,
            "table of results": lambda: report.main(self.files("--dataset", "all")),
            "HTML report": self.html,
            "find every backbone": self.find_backbones,
            "write a choice": lambda: self.choices.write(1, "2", {**self.stamp, "seed": 2}),
            "make scores of 200 candidates": lambda: update_csv(
                self.scores, self.rows_of_scores(range(1, self.count + 1)), **self.of_target(0)
            ),
            "write the scores of 200 candidates": lambda: update_csv(
                self.scores, self.rows_of_scores([self.count // 2]), **self.of_target(self.count // 2)
            ),
        }

    def inventory(self) -> Iterator[str]:
        """How many files there are below each root, how large they are, and the folder with the most."""
        for root in (self.paths.data, self.paths.checkpoints, self.paths.logs):
            sizes, fullest = [], 0
            for folder, below, names in os.walk(root):
                sizes += [(Path(folder) / name).stat().st_size for name in names]
                fullest = max(fullest, len(below) + len(names))
            yield (
                f"{self.count} tasks, {root.name}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, "
                f"at most {fullest} entries in a folder"
            )

    # Making it

    def make_table(self) -> None:
        """Write the table and the caches of its tasks' images, which differ from task to task."""
        names = [f"device_{number:05}" for number in range(1, self.count + 1)]
        head = f'[{CONFIG}]\nroot = "{CONFIG}"\nchannels = 1\nsize = {SIZE}\nmean = [0.5]\nstd = [0.25]\n'
        entries = [f'[[{CONFIG}.tasks]]\nname = "{name}"\nclasses = {list(CLASSES)}\n' for name in names]
        write_atomically(self.table, "\n".join([head, *entries]))
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(len(CLASSES)).repeat(IMAGES)
        for name in names:
            for split in cache.SPLITS:
                images = torch.randint(
                    256, (len(labels), 1, SIZE, SIZE), generator=generator, dtype=torch.uint8
                )
                path = cache.path_of(self.paths.data, CONFIG, name, split)
                cache.write(path, images=images, labels=labels, classes=CLASSES, signature="synthetic")

    def choose_at_random(self) -> None:
        """A backbone for each target that has none, as the search writes it."""
        drawn = random.Random(0)
        rows = [
            {"target_id": target, "task_id": target % self.count + 1 if backbone == target else backbone}
            for target in range(1, self.count + 1)
            if self.choices.chosen(target) is None
            for backbone in [drawn.randint(1, self.count)]
        ]
        stamps = {str(row["target_id"]): {**self.stamp, CHOSEN: row["task_id"]} for row in rows}
        update_json(arguments_file(self.choices.path), stamps)
        # No row is replaced: there is no target 0.
        update_csv(self.choices.path, rows, columns=RESULT_COLUMNS, replace={"target_id": "0"})

    # Files that all tasks share

    @property
    def choices(self) -> ChoiceFile:
        """The last choices."""
        return ChoiceFile(self.paths.result_csv(CONFIG))

    @property
    def scores(self) -> Path:
        """Scores beside those that the searches wrote."""
        return self.paths.table_csv("others")

    @property
    def stamp(self) -> dict:
        """A choice's arguments, as long as those of a choice among thousands."""
        names = (
            "candidates",
            "networks",
            "val_batch_size",
            "protocol",
            "max_iterations",
            "epsilon",
            "precision",
        )
        return dict.fromkeys(names, f"{self.count} of them, sha256:{'0' * 32}")

    def find_backbones(self) -> None:
        """Read every target's choice, as stage 3-2 does."""
        table = load_table(str(self.table), data_root=self.paths.data)
        for task in table.tasks:
            chosen_backbone(self.choices.path, table=table, target=task)

    def rows_of_scores(self, targets: Iterable[int]) -> list[dict]:
        """Rows of scores by one rule."""
        empty = dict.fromkeys((*TABLE_COLUMNS, *SCORES), "")
        return [
            empty | {"target_id": target, "task_id": candidate, "cka": "0.123456"}
            for target in targets
            for candidate in range(1, 201)
        ]

    def of_target(self, target: int) -> dict:
        return {"columns": TABLE_COLUMNS, "added": SCORES, "replace": {"target_id": str(target)}}

    # The stages

    def files(self, *more: str) -> list[str]:
        roots = {"--checkpoints_root": self.paths.checkpoints, "--logs_root": self.paths.logs}
        named = {"--arch": f"{ARCH}:tiny_net", "--dataset_config": self.table, "--data_root": self.paths.data}
        return [*(str(part) for item in (roots | named).items() for part in item), *more]

    def flags(self, *more: str) -> list[str]:
        return self.files("--device", "cpu", "--threads", "1", *more)

    def baselines(self, *more: str) -> None:
        """Stage 1 of all tasks."""
        with without_training():
            packnet_script.main(
                self.flags("--dataset", "all", "--mode", "finetune", *TRAINING, "--lr", "0.01", *more)
            )

    def own(self, *more: str) -> None:
        """Stage 2-1 of all tasks."""
        steps = ("--mode", "finetune", "prune", "--target_sparsity", SPARSITY, "--prune_epochs", "1")
        with without_training():
            cpg_script.main(self.flags("--dataset", "all", *steps, *TRAINING, *more))

    def select(self) -> None:
        """Stage 2-2 of all tasks."""
        select_pruning_ratio.main(self.files("--dataset", "all", "--target_sparsity", SPARSITY))

    def search(self, settings: Mapping[str, str], *more: str) -> None:
        """Stage 3-1."""
        search_script.main(self.flags(*(part for item in settings.items() for part in item), *more))

    def targets(self, *more: str) -> None:
        """Stage 3-2 of all tasks."""
        with without_training():
            cpg_script.main(
                self.flags(
                    *("--dataset", "all", "--backbone", flags.FROM_CSV, "--mode", "finetune"),
                    *TRAINING,
                    *more,
                )
            )

    def stage(self) -> None:
        """A stage as its user starts it, Python's own start included."""
        roots = {"CHECKPOINTS": self.paths.checkpoints, "LOGS": self.paths.logs, "DATA": self.paths.data}
        subprocess.run(
            ["bash", "run_pickaback/baseline.sh", self.table, "all"],
            cwd=REPOSITORY,
            env=os.environ
            | {f"{name}_ROOT": str(path) for name, path in roots.items()}
            | {"ARCH": f"{ARCH}:tiny_net", "EPOCHS": "1", "PYTHON": sys.executable, "DEVICE": "cpu"},
            check=True,
        )

    def html(self) -> None:
        """The HTML report."""
        from tools import report_html

        report_html.main(self.files("--dataset", "all", "--run", RUN, "--to", str(self.root / "report.html")))


@contextmanager
def without_training() -> Iterator[None]:
    """Let the stages keep every network as it was initialised."""
    trained = train_task.fit
    train_task.fit = untrained
    try:
        yield
    finally:
        train_task.fit = trained


def untrained(network: torch.nn.Module, *, learner: Learner, observer: Observer, **_: object) -> Progress:
    """The result of a training run that changed nothing, except that a pruned network is pruned."""
    if isinstance(learner.method, GradualPruning):
        layers = learner.method.shared.layers()
        share = learner.method.final
        learner.method.shared.release(
            {name: torch.rand_like(layer.weight) < share for name, layer in layers.items()}
        )
    row = {"epoch": 1, "loss": 0.1, "accuracy": 0.99, "lr": learner.lr, "val_loss": 0.1, "val_accuracy": 0.9}
    return Progress(epoch=1, history=[row | observer.metrics()])


# Measuring


def measured(operation: Callable[[], object], *, name: str, tasks: int, below: Path) -> Cost:
    """The cost of an operation, run in a forked process of its own.

    Raises:
        UserError: if it fails.
    """
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_run, args=(operation, below, send))
    process.start()
    send.close()
    try:
        seconds, files, reads, megabytes = receive.recv()
    except EOFError as error:
        raise UserError(f"{name} failed with {tasks} tasks: see the lines above") from error
    finally:
        process.join()
    return Cost(tasks, name, round(seconds, 4), files, reads, round(megabytes, 1))


def _run(operation: Callable[[], object], below: Path, send: Connection) -> None:
    opened: Counter[str] = Counter()

    def note(event: str, details: tuple) -> None:
        if event != "open" or not isinstance(details[0], str):
            return
        path, mode, opening = details
        if mode in ("r", "rb", None) and not opening & os.O_ACCMODE and path.startswith(str(below)):
            opened[path] += 1

    sys.addaudithook(note)
    sys.stdout.flush()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        errors_to = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
    before, begun = _peak(), _cpu_seconds()
    try:
        operation()
    except BaseException:
        os.dup2(errors_to, 2)
        raise
    send.send((_cpu_seconds() - begun, len(opened), opened.total(), _peak() - before))


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Drawing


def read_costs(path: Path) -> list[Cost]:
    """The costs that an earlier call measured."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Cost(**{item.name: item.type(row[item.name]) for item in fields(Cost)})
            for row in csv.DictReader(file)
        ]


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Draw the seconds of some operations by the number of tasks, as SVG."""
    # Both need the report extra.
    import altair as alt
    import vl_convert

    from reports.charts import PALETTE, SHAPES, config

    rows = [asdict(cost) for cost in costs if cost.operation in DRAWN]
    names = sorted({row["operation"] for row in rows}, key=DRAWN.index)
    counts = sorted({row["tasks"] for row in rows})
    seconds = [10.0**power for power in range(-2, 3)]
    legend = alt.Legend(orient="right", direction="vertical")
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "tasks:Q",
            title="tasks in the table",
            scale=alt.Scale(type="log", domain=[counts[0], counts[-1]]),
            axis=alt.Axis(values=counts, format=","),
        ),
        y=alt.Y(
            "seconds:Q",
            title="CPU seconds",
            scale=alt.Scale(type="log", domain=[min(row["seconds"] for row in rows), seconds[-1]]),
            axis=alt.Axis(values=seconds, format="~g"),
        ),
        color=alt.Color("operation:N", scale=alt.Scale(domain=names, range=PALETTE), legend=legend),
        shape=alt.Shape("operation:N", scale=alt.Scale(domain=names, range=SHAPES), legend=legend),
    )
    marks = base.mark_point(filled=True, size=60, opacity=1)
    spec = alt.layer(base.mark_line(strokeWidth=2), marks).properties(width=420, height=320).to_dict()
    spec["config"] = config() | {"background": "white"}
    write_atomically(path, vl_convert.vegalite_to_svg(spec | {"padding": 8}) + "\n")


if __name__ == "__main__":
    errors.run(main)
