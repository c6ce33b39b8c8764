"""Command-line flags of all scripts, in groups, with their defaults. Nothing but argparse."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from struct import pack, unpack
from typing import Any, NoReturn

from training.trackers import TRACKERS
from utils.architecture_names import architecture_name
from utils.errors import UserError, as_shown
from utils.paths import LOCK_NAME, check_run, default_root
from utils.precisions import PRECISIONS

FROM_TARGET = "from_target"
FROM_CSV = "from_csv"
EVERY = "all"
REUSES = ("cpg", "copy", "probe")
FREED = ("zero", "random", "dead")
LOG_NAME = "train.log"
# What stands for the seed in the name of a run.
SEED_PLACE = "{seed}"
MUTATIONS = 100
# What networks are compared on.
OWN, PUBLIC, NOISE = "own", "public", "noise"
# Defaults of the multimodal scripts.
MULTIMODAL = {"arch": "perceiver_io", "dataset_config": "digits_docs"}


class Arguments(argparse.Namespace):
    """The values of a script's flags. `vars` leaves out the attributes that are listed here.

    Attributes:
        defaults: every flag's default.
        command: the words of the command line.
    """

    __slots__ = ("command", "defaults")


def changed(args: argparse.Namespace) -> dict[str, Any]:
    """The flags whose values differ from their defaults; all of them if the defaults are unknown."""
    defaults = getattr(args, "defaults", {})
    return {
        name: value
        for name, value in vars(args).items()
        if name not in defaults or _absolute(value) != _absolute(defaults[name])
    }


def _absolute(value: object) -> object:
    """A path made absolute; any other value as it is."""
    return value.absolute() if isinstance(value, Path) else value


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Arguments:
        found = super().parse_args(args, Arguments())
        found.defaults = {action.dest: self.get_default(action.dest) for action in self._actions}
        found.command = [Path(sys.argv[0]).name, *(sys.argv[1:] if args is None else args)]
        return found

    def error(self, message: str) -> NoReturn:
        super().error(as_shown(message))


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser that shows defaults and accepts no abbreviations."""
    return _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


class _HelpFormatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or "default" in shown:
            return shown
        return f"{shown} (default: %(default)s)"


# Types


# The bounds lie far beyond useful values, and below those at which a library overflows or crashes.


@dataclass(frozen=True)
class Whole:
    """The type of a flag: a whole number from `low` to `high`."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {_shortened(text)}") from error
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(
                f"must be from {self.low} to {self.high}, not {_shortened(text)}"
            )
        return value


@dataclass(frozen=True)
class Real:
    """The type of a flag: a number from `low` to `high`.

    Attributes:
        above: exclude `low`.
        below: exclude `high`, and what rounds to it in single precision.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number, not {_shortened(text)}") from error
        if not self._includes(value):
            low = f"greater than {self.low:g}" if self.above else f"at least {self.low:g}"
            high = f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
            raise argparse.ArgumentTypeError(f"must be {low} and {high}, not {_shortened(text)}")
        return value

    def _includes(self, value: float) -> bool:
        if not self.low <= value <= self.high or (self.above and value == self.low):
            return False
        return not self.below or unpack("f", pack("f", value))[0] < self.high


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 24 else f"{text[:24]}…")


positive_int = Whole(1, 1_000_000)
non_negative_int = Whole(0, 1_000_000)
positive_float = Real(0, 1e30, above=True)
non_negative_float = Real(0, 1e30)
sparsity = Real(0, 1, below=True)
DECAY = Real(0, 1e6)
ACCURACY_LOSS = Real(0, 1)
THREADS = Whole(0, 1024)
SEED = Whole(0, 2**63 - 1)
TRIALS = Whole(1, 10_000)
NUMBER_OF_TASKS = Whole(1, 255)
NUMBER_OF_CLASSES = Whole(-1, 1_000_000)
WIDTH = Real(0, 100, above=True)
SIZE = Whole(1, 65_536)
LAYERS = Whole(1, 1_024)
SECONDS = Real(0.1, 86_400)
FREQUENCY = Real(0, 65_536, above=True)


def width_multiplier(text: str) -> float | str:
    """The width of a network, or `from_target`."""
    return FROM_TARGET if text == FROM_TARGET else WIDTH(text)


def samples_per_class(text: str) -> int:
    """A number of samples; 0 stands for all."""
    return 0 if text == "all" else positive_int(text)


# Names of the files that a run writes beside its log.
_OTHER_FILES = ("..", LOCK_NAME, "record.txt")
_OTHER_SUFFIXES = (".tar", ".pt", ".csv", ".json", ".toml")


def log_name(text: str) -> str:
    """The name of a log file, which is none of a run's other files."""
    name = Path(text).name
    if not name or name in _OTHER_FILES or name.endswith(_OTHER_SUFFIXES):
        raise argparse.ArgumentTypeError(
            f"must be the name of a log, such as train.log, not {_shortened(text)}"
        )
    return text


def run_name(text: str) -> str:
    """The name of a run, in which `{seed}` stands for the seed."""
    try:
        check_run(text.replace(SEED_PLACE, "0"))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


@dataclass(frozen=True)
class Candidates:
    """The tasks that may become a target's backbone.

    Attributes:
        tasks: names, ids and ranges, or all.
        among: restricts them to the target's modality ("same") or to the others ("other"); "all" does not.
    """

    tasks: str = "all"
    among: str = "all"

    def __str__(self) -> str:
        return ",".join(dict.fromkeys((self.among, self.tasks))) if self.among != "all" else self.tasks


def candidates(text: str) -> Candidates:
    """Names, ids and ranges separated by commas; `same` or `other` among them restricts the modality."""
    parts = [part.strip() for part in text.split(",")]
    among = {part for part in parts if part in ("same", "other")}
    if len(among) > 1:
        raise argparse.ArgumentTypeError(f"{text}: same and other are mutually exclusive; all means both")
    tasks = ",".join(part for part in parts if part not in among)
    return Candidates(tasks=tasks or "all", among=among.pop() if among else "all")


# Groups that several scripts share


def add_common(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that computes."""
    add_files(parser)
    add_overwrite(parser)
    add_computing(parser)


def add_files(parser: argparse.ArgumentParser, *, several_runs: bool = False) -> None:
    """Which tasks to run, and where their files are.

    Args:
        several_runs: let `--run` be repeated, and name folders of runs and patterns with `{seed}`.
    """
    group = parser.add_argument_group("tasks and files")
    add_tasks(group)
    _add_sizes(group)
    group.add_argument(
        "--text_encoder",
        default="hash",
        help="Text encoder: hash (needs no download), a model such as bert-base-uncased, or a local folder "
        "in Hugging Face format.",
    )
    default = "<arch>/seed<seed>[-n<N>][-heldout]"
    if several_runs:
        _add_roots_of_results(group)
        group.add_argument(
            "--run",
            action="append",
            type=run_name,
            help="A run under the roots, a folder of runs, or a name with {seed} in it; may be repeated "
            f"(default: {default}).",
        )
    else:
        _add_results(group, run=default)
    _add_samples(group)
    _add_seed(group)


def add_tasks(group: argparse._ActionsContainer) -> None:
    """The task table, its tasks, its data and the architecture."""
    group.add_argument(
        "--arch",
        type=architecture_name,
        default="lenet5",
        help="Architecture: a name, or a function in a file of your own, path/to/my_net.py:my_net.",
    )
    group.add_argument(
        "--dataset_config", default="digits_few", help="Task table: a name, or a TOML file with one table."
    )
    group.add_argument(
        "--dataset", default="all", help="Tasks: a name, an id, a list (fish,14), a range (1-20) or all."
    )
    _add_root(group, "data")


_SIZES: dict[str, tuple[Callable, str]] = {
    "num_latents": (SIZE, "Number of latent vectors."),
    "latent_dim": (SIZE, "Width of a latent vector."),
    "depth": (LAYERS, "Layers of the trunk."),
    "self_per_cross_attn": (LAYERS, "Latent self-attention blocks after each cross-attention."),
    "latent_heads": (LAYERS, "Heads of the latent self-attention."),
    "latent_dim_head": (SIZE, "Width of a head of the latent self-attention."),
    "cross_heads": (LAYERS, "Heads of the cross-attention."),
    "cross_dim_head": (SIZE, "Width of a head of the cross-attention."),
    "num_freq_bands": (LAYERS, "Frequency bands of the position encoding per axis."),
    "max_freq": (FREQUENCY, "Sampling rate of the position encoding: twice its highest frequency."),
    "max_text_length": (SIZE, "Maximum number of tokens in a text."),
    "feature_width": (SIZE, "Width of the features that a head receives."),
    "queries_dim": (SIZE, "Width of the decoder's output queries."),
}


def _add_sizes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--size",
        default=argparse.SUPPRESS,
        help="Preset of sizes, such as tiny or base (default: the architecture's).",
    )
    for name, (kind, text) in _SIZES.items():
        group.add_argument(
            f"--{name}", type=kind, default=argparse.SUPPRESS, help=f"{text} (default: the architecture's)"
        )


def given_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """The size flags that were given, with the preset as `size`."""
    return {name: getattr(args, name) for name in ("size", *_SIZES) if hasattr(args, name)}


def _add_root(group: argparse._ActionsContainer, name: str) -> None:
    group.add_argument(
        f"--{name}_root",
        type=Path,
        default=default_root(name),
        help=f"Folder of {name}; the environment variable {name.upper()}_ROOT also sets it.",
    )


def _add_roots_of_results(group: argparse._ArgumentGroup) -> None:
    _add_root(group, "checkpoints")
    _add_root(group, "logs")


def _add_results(group: argparse._ArgumentGroup, *, run: str) -> None:
    _add_roots_of_results(group)
    group.add_argument("--run", type=run_name, help=f"Name of the run under the roots (default: {run}).")


def _add_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--protocol",
        choices=("published", "heldout"),
        default="published",
        help="Samples that decide growth, pruning and selection: the test set (published), or a held-out "
        "tenth of the training samples (heldout).",
    )
    group.add_argument(
        "--train_per_class",
        type=samples_per_class,
        help="Training samples drawn from each class by --seed, before any are held out, or all (default: as "
        "the task table says, else all).",
    )


def _add_seed(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=SEED, default=1, help="Random seed.")


def add_seeds(
    group: argparse._ActionsContainer,
    *,
    help: str = "Seeds to summarise; the name of a run then contains {seed} (default: --seed alone).",
) -> None:
    """The flag that names several seeds."""
    group.add_argument("--seeds", type=SEED, nargs="+", help=help)


def check_seeds(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject a seed that is given twice."""
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        parser.error("--seeds names a seed twice")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The flag of every script that skips finished outputs."""
    parser.add_argument(
        "--overwrite", action="store_true", help="Redo finished outputs (default: skip them)."
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Device, precision and threads."""
    group = parser.add_argument_group("computing")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>.")
    _add_precision(group)
    group.add_argument(
        "--nondeterministic",
        action="store_true",
        help="On CUDA, let cuDNN autotune and use nondeterministic algorithms, for speed (default: "
        "deterministic algorithms, no autotuning).",
    )
    group.add_argument("--threads", type=THREADS, default=0, help="CPU threads; 0 keeps torch's choice.")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flag of the scripts that can train one task on several GPUs."""
    parser.add_argument(
        "--gpus_per_task",
        type=Whole(1, 1024),
        default=1,
        help="GPUs that share every batch of a task: --device and those after it; with --device cpu, as many "
        "processes on the CPU.",
    )


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="Number format: fp32 everywhere; TF32 in matrix products and convolutions on CUDA; or bfloat16 "
        "autocast in forward passes.",
    )


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--epochs",
        type=positive_int,
        default=100,
        help="Training epochs. The learning rate drops by a factor of 10 after 50%% and after 80%% of them "
        "(published: after epochs 50 and 80).",
    )
    _add_steps(group)


def _add_steps(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch_size", type=positive_int, default=32, help="Samples per training step.")
    group.add_argument(
        "--lr", type=positive_float, default=1e-2, help="Initial learning rate of the weights."
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weight_decay", type=DECAY, default=4e-5, help="Weight decay on owned weights.")
    group.add_argument(
        "--clip_grad_norm",
        type=non_negative_float,
        help="Clip the gradient norm of the weights to this value; 0 disables clipping (default: 1 for "
        "Perceivers, none for other architectures).",
    )


def _add_on_backbone(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--freed",
        choices=FREED,
        default=FREED[0],
        help="Weights that pruning freed start at zero (as published), are all drawn again, or only those of "
        "units that no earlier weight enters (dead).",
    )
    group.add_argument("--lr_mask", type=positive_float, default=1e-4, help="Learning rate of piggymasks.")


def _add_prune_epochs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prune_epochs", type=positive_int, default=20, help="Epochs at each pruning ratio.")


def _add_widest(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max_allowed_network_width_multiplier",
        type=WIDTH,
        default=2.0,
        help="Maximum width multiplier on a backbone or in sequence; the network grows in steps of 0.5.",
    )


def add_stage_values(parser: argparse.ArgumentParser) -> None:
    """The flags that take the values of variables in `run_pickaback/config.sh`."""
    group = parser.add_argument_group("values of a stage's variables, which are only checked")
    _add_precision(group)
    _add_schedule(group)
    _add_prune_epochs(group)
    _add_widest(group)
    add_sparsities(group)
    add_allowed_loss(group)
    add_tracking(group)


def add_training(parser: argparse.ArgumentParser) -> None:
    """The flags of the scripts that train tasks of a table."""
    group = parser.add_argument_group("training")
    _add_schedule(group)
    group.add_argument(
        "--val_batch_size", type=positive_int, default=500, help="Samples per batch in evaluation."
    )
    _add_limits(group)
    group.add_argument(
        "--num_classes",
        type=NUMBER_OF_CLASSES,
        default=-1,
        help="Number of classes of the task; -1 uses the table's; any other number must match it.",
    )
    group.add_argument(
        "--load_folder", type=Path, help="Folder of the checkpoint to start from (default: from the layout)."
    )
    group.add_argument("--save_folder", type=Path, help="Output folder (default: from the layout).")
    group.add_argument(
        "--use_imagenet_pretrained",
        action="store_true",
        help="Initialise a network's first task with torchvision's ImageNet weights, downloaded by "
        "torchvision; has no effect on a backbone (default: random weights).",
    )
    group.add_argument(
        "--pretrained_file",
        type=Path,
        help="Initialise a network's first task with this state dict of torchvision's model (default: random "
        "weights).",
    )
    group.add_argument("--log_path", type=Path, help="Folder of the log file (default: the save folder).")
    group.add_argument("--logfile", type=log_name, default=LOG_NAME, help="Name of the log file.")
    group.add_argument(
        "--list_unfinished",
        action="store_true",
        help="Only print the unfinished tasks of --dataset, one per line (default: train them).",
    )
    add_tracking(group)
    add_baseline_file(group)


def add_baseline_file(group: argparse._ActionsContainer) -> None:
    """The flag for the file of scratch baselines."""
    group.add_argument(
        "--jsonfile", type=Path, help="JSON file of the scratch baselines (default: from the layout)."
    )


def add_record_file(group: argparse._ActionsContainer) -> None:
    """The flag for the file of accuracies by sparsity."""
    group.add_argument(
        "--pruning_ratio_to_acc_record_file",
        type=Path,
        help="JSON file of accuracy by sparsity (default: record.txt beside the pruned networks).",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """The flags for reports on a checkpoint."""
    group = parser.add_argument_group("report on a checkpoint")
    group.add_argument(
        "--compute_report",
        action="store_true",
        help="With --mode inference: print parameters, bytes of weights and masks, multiply-adds per forward "
        "pass and each task's share of the weights (default: only the accuracy).",
    )
    group.add_argument(
        "--report_file", type=Path, help="JSON file for the report (default: it is only printed)."
    )


def check_report(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject report flags without --mode inference."""
    if args.compute_report and "inference" not in args.mode:
        parser.error("--compute_report requires --mode inference")
    if args.report_file and not args.compute_report:
        parser.error("--report_file requires --compute_report")


def add_width(group: argparse._ArgumentGroup) -> None:
    """The flag for the network's width."""
    group.add_argument(
        "--network_width_multiplier",
        type=width_multiplier,
        default=1.0,
        help="Width multiplier; channels scale with its square root. from_target uses the width that the "
        "task reached in stage 3-2.",
    )


def add_candidates(group: argparse._ArgumentGroup, *, help: str) -> None:
    """The flag for the tasks that may become a backbone."""
    group.add_argument("--candidates", type=candidates, default=Candidates(), help=help)


def add_mutations(group: argparse._ActionsContainer) -> None:
    """The flag for the number of mutations in the search."""
    group.add_argument(
        "--max_iterations",
        type=non_negative_int,
        help=f"Mutations of the probes; 0 disables them (default: {MUTATIONS}, but 0 where networks are "
        "compared by keys and values).",
    )


def add_probes(group: argparse._ActionsContainer) -> None:
    """The flags of what networks are compared on."""
    group.add_argument(
        "--probes",
        choices=(OWN, PUBLIC, NOISE),
        default=OWN,
        help="What networks are compared on: validation samples of both tasks, which leave their devices "
        "(own, as published), samples of --public_probes (public), or images of noise (noise).",
    )
    group.add_argument(
        "--public_probes",
        help="Pool of --probes public: a task of the table, or a folder with PNG and JPEG images, which are "
        "resized (default: none).",
    )


def check_probes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject a public pool without a use for it, and the other way round."""
    if (args.probes == PUBLIC) != (args.public_probes is not None):
        parser.error("--public_probes names the pool of --probes public: give both or neither")


def add_fleet(group: argparse._ActionsContainer) -> None:
    """The flag for the run that candidates and backbones come from."""
    group.add_argument(
        "--fleet",
        type=run_name,
        help="Run whose networks are the candidates and backbones, e.g. one whose tasks have more images "
        "(default: this run).",
    )


def add_chosen_pairs(group: argparse._ArgumentGroup) -> None:
    """The flags that select a choice of stage 3-1, for the stages after it."""
    add_candidates(
        group,
        help="The --candidates given to stage 3-1, whose choice is used: all, or only those of the `same` or "
        "the `other` modality.",
    )
    group.add_argument(
        "--csv_path", type=Path, help="CSV of the chosen backbones (default: from the layout)."
    )


def add_tracking(group: argparse._ActionsContainer) -> None:
    """The flag for experiment trackers."""
    group.add_argument(
        "--log_to",
        choices=tuple(TRACKERS),
        nargs="+",
        help="Experiment trackers that also receive each epoch, the recipe and the final accuracies; each "
        "must be installed (default: none).",
    )


def add_watching(parser: argparse.ArgumentParser) -> None:
    """The flags of the live view of running stages."""
    group = parser.add_argument_group("runs")
    _add_root(group, "checkpoints")
    _add_root(group, "logs")
    group.add_argument(
        "--run", type=run_name, help="Only this run and those below it, such as lenet5 (default: all)."
    )
    parser.add_argument(
        "--interval",
        type=SECONDS,
        help="Seconds between two views (default: 2 on a terminal; elsewhere one view is printed).",
    )
    parser.add_argument("--once", action="store_true", help="Print one view as plain lines (default: live).")


def add_sparsities(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag for the pruning ratios."""
    parser.add_argument(
        "--target_sparsity",
        type=sparsity,
        nargs="+",
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
        help="Pruning ratios, run in order, each starting from the previous one.",
    )


def check_sparsities(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *, initial: float = 0.0
) -> None:
    """Reject pruning ratios that do not increase, from above `initial`."""
    ratios = args.target_sparsity
    if ratios != sorted(set(ratios)) or ratios[0] <= initial:
        parser.error("--target_sparsity must increase strictly, from above --initial_sparsity")


def add_allowed_loss(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag for the accuracy that pruning may cost."""
    parser.add_argument(
        "--allow_acc_loss",
        type=ACCURACY_LOSS,
        default=0.001,
        help="Accuracy that a pruned network may lose relative to the scratch baseline.",
    )


# Stage 1


def add_packnet(parser: argparse.ArgumentParser) -> None:
    """The flags of stage 1."""
    group = parser.add_argument_group("PackNet")
    group.add_argument(
        "--mode",
        choices=("finetune", "prune", "inference"),
        default="finetune",
        help="Train; prune once and retrain; or evaluate a checkpoint.",
    )
    group.add_argument(
        "--target_sparsity",
        type=sparsity,
        nargs="+",
        default=[0.5],
        help="Pruning ratios of --mode prune, each applied to the unpruned network.",
    )
    add_width(group)
    add_chosen_pairs(group)


def check_packnet(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject combinations of flags that contradict each other."""
    check_report(parser, args)
    _check_listing(parser, args)
    if args.load_folder and args.mode == "finetune":
        parser.error("--load_folder has no effect: --mode finetune starts from scratch")


def _check_listing(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.list_unfinished and (args.overwrite or "inference" in args.mode):
        parser.error("--list_unfinished excludes --overwrite and --mode inference")


# Stages 2-1 and 3-2


def add_cpg(parser: argparse.ArgumentParser) -> None:
    """The flags of CPG and of gradual pruning."""
    group = parser.add_argument_group("CPG")
    group.add_argument(
        "--mode",
        choices=("finetune", "prune", "inference"),
        nargs="+",
        default=["finetune"],
        help="Train, prune gradually, or evaluate a checkpoint; `finetune prune` does the first two in turn.",
    )
    group.add_argument(
        "--backbone",
        help=f"Train on this task's pruned network: a name, an id, {FROM_CSV} for the one that stage 3-1 "
        f"chose, or {EVERY} for each of --candidates in turn (default: train from scratch).",
    )
    add_chosen_pairs(group)
    add_fleet(group)
    group.add_argument(
        "--reuse",
        choices=REUSES,
        default=REUSES[0],
        help="How the target reuses the backbone: cpg trains on its pruned network and leaves its task as it "
        "is. Controls, on its unpruned network: copy fine-tunes a dense copy; probe fits a linear classifier "
        "to frozen features.",
    )
    _add_on_backbone(group)
    add_width(group)
    _add_widest(group)
    group = parser.add_argument_group("gradual pruning")
    add_sparsities(group)
    group.add_argument(
        "--initial_sparsity",
        type=sparsity,
        default=0.0,
        help="Sparsity to start from; above 0, pruning starts from the network pruned to it.",
    )
    _add_prune_epochs(group)
    group.add_argument("--prune_lr", type=positive_float, default=1e-3, help="Learning rate while pruning.")
    group.add_argument(
        "--pruning_interval",
        type=positive_int,
        default=4,
        help="Epochs, out of --prune_epochs, during which the sparsity grows.",
    )
    group.add_argument("--pruning_frequency", type=positive_int, default=10, help="Steps between cuts.")
    add_record_file(group)


def check_cpg(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject combinations of flags that contradict each other."""
    check_report(parser, args)
    _check_listing(parser, args)
    check_sparsities(parser, args, initial=args.initial_sparsity)
    if "inference" in args.mode and len(args.mode) > 1:
        parser.error("--mode inference cannot be combined with another mode")
    if args.backbone == EVERY and (args.load_folder or args.save_folder or args.mode == ["inference"]):
        parser.error(
            f"--backbone {EVERY} trains in a folder per backbone: leave out --load_folder, "
            "--save_folder and --mode inference"
        )
    if args.reuse != REUSES[0] and (args.backbone is None or args.mode != ["finetune"]):
        parser.error(f"--reuse {args.reuse} trains on a backbone: give --backbone and --mode finetune")
    if args.backbone and "prune" in args.mode:
        parser.error("--mode prune prunes a task's own network: leave out --backbone")
    if args.load_folder and args.mode == ["finetune"] and not args.backbone:
        parser.error("--load_folder: --mode finetune uses it only with --backbone")
    if len(args.mode) > 1 and (args.load_folder or args.save_folder):
        parser.error("--load_folder and --save_folder belong to one mode: run finetune and prune in turn")


def add_in_sequence(parser: argparse.ArgumentParser) -> None:
    """The flags of CPG on tasks in sequence."""
    group = parser.add_argument_group("tasks in sequence")
    group.add_argument(
        "--total_num_tasks",
        type=NUMBER_OF_TASKS,
        help="Learn the tasks of --dataset in sequence in one network that will hold this many. Each is "
        "trained and pruned, and its ratio chosen, before the next. Requires --mode finetune prune (default: "
        "a network per task).",
    )
    add_allowed_loss(group)
    group.add_argument(
        "--stop_pruning_early",
        action="store_true",
        help="Stop at the first ratio that misses the baseline (default: try all: a higher one may pass).",
    )
    group.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="Keep the networks of every width and ratio (default: only the chosen one).",
    )


def check_in_sequence(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject flags that contradict a sequence of tasks, or that need one."""
    if args.total_num_tasks is None:
        if args.stop_pruning_early or args.keep_checkpoints:
            parser.error("--stop_pruning_early and --keep_checkpoints require --total_num_tasks")
        return
    if args.mode != ["finetune", "prune"]:
        parser.error("--total_num_tasks requires --mode finetune prune")
    if (
        args.backbone
        or args.initial_sparsity
        or args.pruning_ratio_to_acc_record_file
        or args.network_width_multiplier == FROM_TARGET
        or args.list_unfinished
    ):
        parser.error(
            "--total_num_tasks: leave out --backbone, --initial_sparsity, --list_unfinished, "
            "--pruning_ratio_to_acc_record_file and --network_width_multiplier from_target"
        )


def add_multimodal(parser: argparse.ArgumentParser, *, modalities: Sequence[str]) -> None:
    """The flags of stage 3-2 across modalities."""
    group = parser.add_argument_group("multimodal")
    group.add_argument(
        "--modality", choices=modalities, help="Only the tasks of this modality (default: all tasks)."
    )
    group.add_argument(
        "--no_kv_transfer",
        action="store_true",
        help="Control: start from the backbone's own projections (default: from the checkpoint of stage "
        "3-1b).",
    )
    parser.set_defaults(**MULTIMODAL)


def check_multimodal(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject combinations of flags that contradict each other."""
    check_cpg(parser, args)
    if args.no_kv_transfer and args.backbone is None:
        parser.error("--no_kv_transfer requires --backbone")


# Stages 3-1 and 3-1b


def add_search(parser: argparse.ArgumentParser, *, rules: Sequence[str]) -> None:
    """The flags of the search for a backbone."""
    group = parser.add_argument_group("search")
    group.add_argument("--target_id", help="The targets: ids, names or ranges (default: --dataset).")
    add_candidates(
        group,
        help="Tasks that may become the backbone: names, ids, ranges or all; `same` or `other` among them "
        "restricts them to the target's modality or to the others, and writes separate files.",
    )
    add_fleet(group)
    group.add_argument(
        "--baseline_folder",
        type=Path,
        help="Folder of the scratch networks, <task>/checkpoint-<epoch>.pth.tar (default: from the layout).",
    )
    add_mutations(group)
    group.add_argument("--epsilon", type=positive_float, default=0.1, help="Size of a mutation.")
    group.add_argument("--val_batch_size", type=positive_int, default=50, help="Probes from each task.")
    add_probes(group)
    group.add_argument(
        "--select",
        choices=rules,
        default="farthest",
        help="Selection rule: the farthest candidate (as in the published code), the nearest, a random one, "
        "or the one with the highest score of this name, such as race (docs/rules.md).",
    )
    group.add_argument(
        "--scores",
        choices=("chosen", "cheap", "all"),
        default="cheap",
        help="Scores to compute and write to the CSV of scores: only what the rule needs, also the others "
        "except the slow ones (logistic), or all; race only if it is the rule.",
    )
    group.add_argument(
        "--rule_samples",
        type=positive_int,
        default=500,
        help="Maximum number of the target's training samples from which rules by labels are computed, drawn "
        "by seed with the classes in proportion.",
    )
    group.add_argument(
        "--backbone", help="Choose this task regardless of its distance (default: choose by --select)."
    )
    group.add_argument(
        "--csv_path", type=Path, help="CSV file of the chosen backbones (default: from the layout)."
    )
    group.add_argument(
        "--list_unfinished",
        action="store_true",
        help="Only print the targets without a chosen backbone, one per line (default: search).",
    )
    first = parser.add_argument_group("two steps: a cheap rule over all candidates, then --select")
    first.add_argument(
        "--finalists",
        type=positive_int,
        help="How many candidates --select chooses among, the best by --first_rule (default: all).",
    )
    first.add_argument(
        "--first_rule",
        choices=[rule for rule in rules if rule != _RACE],
        help="Rule by which --finalists takes the best (default: none).",
    )
    _add_race(parser)


_RACE = "race"


def _add_race(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("race: training as in stage 3-2")
    group.add_argument(
        "--race_epochs",
        type=positive_int,
        default=5,
        help="Epochs of training on each candidate; the learning rate drops as in a stage of so many epochs.",
    )
    _add_steps(group)
    _add_limits(group)
    _add_on_backbone(group)


# Flags that have no effect under other rules.
_OF_RACE = (*("race_epochs", "batch_size", "lr", "weight_decay", "clip_grad_norm", "freed", "lr_mask"),)


def check_search(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject combinations of flags that contradict each other."""
    if args.list_unfinished and args.overwrite:
        parser.error("--list_unfinished excludes --overwrite")
    unused = [f"--{name}" for name in _OF_RACE if name in changed(args)]
    if unused and (args.backbone or args.select != _RACE):
        parser.error(f"{', '.join(unused)} requires --select {_RACE}, without --backbone")
    check_probes(parser, args)
    if (args.finalists is None) != (args.first_rule is None):
        parser.error("--finalists and --first_rule go together")
    if args.finalists and args.backbone:
        parser.error("--finalists excludes --backbone")


def add_kv_transfer(parser: argparse.ArgumentParser) -> None:
    """The flags of the K/V transfer."""
    group = parser.add_argument_group("K/V transfer")
    group.add_argument("--target_id", help="The targets: ids, names or ranges (default: --dataset).")
    group.add_argument(
        "--backbone",
        default=FROM_CSV,
        help=f"The backbone: a name, an id, or {FROM_CSV} for the one that stage 3-1 chose.",
    )
    add_chosen_pairs(group)
    group.add_argument(
        "--baseline_folder",
        type=Path,
        help="Folder of the targets' own networks, <task>/checkpoint-<epoch>.pth.tar (default: the scratch "
        "networks of stage 1, from the layout).",
    )
    group.add_argument(
        "--load_folder",
        type=Path,
        help="Folder of the backbone's checkpoint, beside which the new one is written (default: from the "
        "layout).",
    )
    add_fleet(group)
    parser.set_defaults(**MULTIMODAL)


# SPG and the approaches it is compared with


def add_continual(parser: argparse.ArgumentParser) -> None:
    """The flags of learning a sequence of tasks in one network, except the approaches' own."""
    group = parser.add_argument_group("sequence and files")
    group.add_argument(
        "--seq",
        default="digits_5",
        help="Task sequence: a name in data/sequences.toml, or a .toml file with a task table or with "
        "sequences (FILE.toml:NAME picks one).",
    )
    group.add_argument("--appr", default="spg", help="Approach.")
    group.add_argument(
        "--arch",
        "--backbone",
        dest="arch",
        type=architecture_name,
        default="alexnet",
        help="Convolutional architecture that learns the sequence: a name, or path/to/my_net.py:my_net "
        "(--backbone is an alias).",
    )
    _add_root(group, "data")
    _add_results(group, run="spg/<seq>/<appr>[-<arch>]/seed<seed>")
    _add_seed(group)
    add_overwrite(parser)
    add_computing(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, default=500, help="Maximum number of epochs per task.")
    group.add_argument("--batch_size", type=positive_int, default=64, help="Samples per training step.")
    group.add_argument(
        "--val_batch_size", type=positive_int, default=500, help="Samples per batch in evaluation."
    )
    group.add_argument(
        "--dropout",
        type=sparsity,
        nargs=2,
        metavar=("CONV", "REST"),
        help="Dropout of the first two convolutions, and of the rest (default: tuned for the sequence).",
    )
    group.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="Keep the checkpoint of every task (default: only the newest one).",
    )
    add_tracking(group)


def add_continual_report(parser: argparse.ArgumentParser) -> None:
    """The flags of the comparison of approaches on a sequence."""
    parser.add_argument("--seq", default="digits_5", help="Task sequence, as for spg_main.py.")
    parser.add_argument("--appr", nargs="+", required=True, metavar="NAME", help="Approaches to compare.")
    parser.add_argument("--seeds", nargs="+", type=SEED, default=[1], help="Seeds of the runs.")
    parser.add_argument("--arch", default="alexnet", help="Architecture of the runs.")
    for name in ("data", "checkpoints", "logs"):
        _add_root(parser, name)
    parser.add_argument(
        "--check",
        action="store_true",
        help="Only check the approaches' names, the sequence and its numbers of images.",
    )


def add_trials(parser: argparse.ArgumentParser) -> None:
    """The flags for several runs of one command."""
    group = parser.add_argument_group("several runs")
    group.add_argument(
        "--trials", type=TRIALS, default=1, help="Number of runs, with consecutive seeds from --seed."
    )
    add_seeds(group, help="Seeds of the runs, in turn (default: --trials seeds from --seed).")
    group.add_argument(
        "--tune", action="store_true", help="Tune the dropouts on validation accuracy, with Optuna."
    )
    group.add_argument(
        "--tune_trials", type=TRIALS, default=20, help="Number of dropout pairs that --tune tries."
    )


def check_trials(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject combinations of flags that contradict each other."""
    check_seeds(parser, args)
    if args.trials > 1 and args.seeds:
        parser.error("--trials and --seeds both name seeds: leave out one of them")
    several = "--seeds" if len(args.seeds or ()) > 1 else "--trials" if args.trials > 1 else None
    if several and args.run and SEED_PLACE not in args.run:
        parser.error(f"{several} makes several runs: leave out --run, or put {SEED_PLACE} into it")
    if several and args.tune:
        parser.error(f"--tune searches with one seed: leave out {several}")
    if args.tune and args.dropout:
        parser.error("--tune chooses the dropouts: leave out --dropout")


_KINDS: Mapping[str, Callable] = {
    "positive_float": positive_float,
    "positive_int": positive_int,
    "non_negative_float": non_negative_float,
    "non_negative_int": non_negative_int,
    "share": sparsity,
}


def add_settings(parser: argparse.ArgumentParser, title: str, settings: type) -> None:
    """Add a flag for each field of a settings dataclass, whose metadata holds its `kind` and `help`.

    This lets an approach declare its flags beside the code that uses them (see `methods.approaches.base`).
    """
    declared = fields(settings)
    if not declared:
        return
    group = parser.add_argument_group(title)
    for item in declared:
        default = None if item.default is MISSING else item.default
        group.add_argument(
            f"--{item.name}",
            type=_KINDS[item.metadata["kind"]],
            default=default,
            help=item.metadata["help"],
        )


def settings_from(args: argparse.Namespace, settings: type) -> Any:
    """Build a settings dataclass from the flags."""
    return settings(**{item.name: getattr(args, item.name) for item in fields(settings)})
