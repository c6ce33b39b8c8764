"""The command-line flags that scripts share, with their defaults."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.paths import Paths, default_root

FROM_TARGET = "from_target"
MUTATIONS = 100
# What scripts take that are for several modalities, unless told otherwise.
MULTIMODAL = {"arch": "perceiver_io", "dataset_config": "digits_docs"}


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser that shows defaults and takes no abbreviations."""
    return argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )


class _HelpFormatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or "default" in shown:
            return shown
        return f"{shown} (default: %(default)s)"


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def non_negative_int(text: str) -> int:
    """An integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def positive_float(text: str) -> float:
    """A number greater than 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def non_negative_float(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def sparsity(text: str) -> float:
    """A share of at least 0 and less than 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and less than 1")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that computes."""
    add_files(parser)
    add_overwrite(parser)
    add_computing(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Which tasks, and where their files lie."""
    group = parser.add_argument_group("tasks and files")
    add_tasks(group)
    _add_sizes(group)
    group.add_argument(
        "--text_encoder",
        default="hash",
        help="Encoder of text tasks: hash, which needs no download, a model such as bert-base-uncased, or a "
        "local folder in the Hugging Face format.",
    )
    _add_results(group, run="<arch>/seed<seed>[-heldout]")
    group.add_argument(
        "--protocol",
        choices=("published", "heldout"),
        default="published",
        help="What decides growth, pruning and selection: the test set, as published, or a tenth of the "
        "training samples held out.",
    )
    _add_seed(group)


def add_tasks(group: argparse._ActionsContainer) -> None:
    """Which tasks of which table, where its data lies, and the architecture that learns them."""
    group.add_argument("--arch", default="lenet5", help="Architecture.")
    group.add_argument(
        "--dataset_config", default="digits", help="Task table: a name, or a TOML file with one table."
    )
    group.add_argument(
        "--dataset", default="all", help="Tasks: a name, an id, a list (fish,14), a range (1-20) or all."
    )
    _add_root(group, "data")


_SIZES: dict[str, tuple[Callable, str]] = {
    "num_latents": (positive_int, "Latent vectors."),
    "latent_dim": (positive_int, "Width of a latent vector."),
    "depth": (positive_int, "Layers of the trunk."),
    "self_per_cross_attn": (positive_int, "Latent self-attention blocks after each cross-attention."),
    "latent_heads": (positive_int, "Heads of the latent self-attention."),
    "latent_dim_head": (positive_int, "Width of each of them."),
    "cross_heads": (positive_int, "Heads of the cross-attention."),
    "cross_dim_head": (positive_int, "Width of each of them."),
    "num_freq_bands": (positive_int, "Frequencies of the position encoding of an axis."),
    "max_freq": (positive_float, "Sampling rate of an axis: twice the highest of them."),
    "max_text_length": (positive_int, "Tokens that have a position."),
    "feature_width": (positive_int, "Width of the features that a head sees."),
    "queries_dim": (positive_int, "Width of the decoder's output queries."),
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
    """The size flags that were given, `size` for the preset."""
    return {name: getattr(args, name) for name in ("size", *_SIZES) if hasattr(args, name)}


def add_sequence(parser: argparse.ArgumentParser) -> None:
    """What, where and how reproducibly, for a script that learns a sequence of tasks in one network."""
    group = parser.add_argument_group("sequence and files")
    group.add_argument("--seq", default="digits_5", help="Sequence of tasks; data/sequences.toml has them.")
    group.add_argument("--appr", default="spg", help="Approach.")
    group.add_argument("--backbone", default="alexnet", help="Convolutional architecture that learns it.")
    _add_root(group, "data")
    _add_results(group, run="spg/<seq>/<appr>[-<backbone>]/seed<seed>")
    _add_seed(group)
    add_overwrite(parser)
    add_computing(parser)


def _add_root(group: argparse._ActionsContainer, name: str) -> None:
    group.add_argument(
        f"--{name}_root",
        type=Path,
        default=default_root(name),
        help=f"Folder of {name}; {name.upper()}_ROOT in the environment moves it too.",
    )


def _add_results(group: argparse._ArgumentGroup, *, run: str) -> None:
    _add_root(group, "checkpoints")
    _add_root(group, "logs")
    group.add_argument("--run", help=f"Name of the run under the roots (default: {run}).")


def _add_seed(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=non_negative_int, default=1, help="Seed of all that is random.")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The flag of whatever leaves finished outputs."""
    parser.add_argument(
        "--overwrite", action="store_true", help="Redo finished outputs (default: skip them)."
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Where and how numbers are computed."""
    group = parser.add_argument_group("computing")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>.")
    group.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="Number format of forward passes."
    )
    group.add_argument(
        "--threads", type=non_negative_int, default=0, help="CPU threads; 0 leaves torch's choice."
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that train."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, default=100, help="Epochs of training.")
    group.add_argument("--batch_size", type=positive_int, default=32, help="Samples a training step.")
    group.add_argument(
        "--val_batch_size", type=positive_int, default=500, help="Samples a batch in evaluation."
    )
    group.add_argument("--lr", type=positive_float, default=1e-2, help="First learning rate of the weights.")
    group.add_argument(
        "--weight_decay", type=non_negative_float, default=4e-5, help="Weight decay on owned weights."
    )
    group.add_argument(
        "--clip_grad_norm",
        type=non_negative_float,
        help="Greatest L2 norm of the weights' gradients in a step, longer ones are shortened to it; 0 means "
        "any (default: 1 for Perceivers, any for others).",
    )
    group.add_argument(
        "--num_classes",
        type=int,
        default=-1,
        help="Classes of the task; -1 takes the table's, another number must agree with it.",
    )
    group.add_argument(
        "--load_folder", type=Path, help="Folder of the checkpoint to start from (default: by the layout)."
    )
    group.add_argument("--save_folder", type=Path, help="Folder to write to (default: by the layout).")
    group.add_argument(
        "--use_imagenet_pretrained",
        action="store_true",
        help="Start a network's first task from torchvision's ImageNet weights, which torchvision downloads; "
        "on a backbone they are the backbone's affair.",
    )
    group.add_argument(
        "--pretrained_file",
        type=Path,
        help="The same from this file, a state dict of torchvision's model (default: downloaded).",
    )
    group.add_argument("--log_path", type=Path, help="Folder of the log file (default: the save folder).")
    group.add_argument("--logfile", default="train.log", help="Name of the log file.")
    add_baseline_file(group)


def add_baseline_file(group: argparse._ActionsContainer) -> None:
    """The flag of the accuracies that stage 1 noted."""
    group.add_argument(
        "--jsonfile", type=Path, help="JSON file of the scratch baselines (default: by the layout)."
    )


def add_record_file(group: argparse._ActionsContainer) -> None:
    """The flag of the accuracies that pruning noted."""
    group.add_argument(
        "--pruning_ratio_to_acc_record_file",
        type=Path,
        help="JSON file of accuracy by sparsity (default: record.txt beside the pruned networks).",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """The flags of looking at a checkpoint."""
    group = parser.add_argument_group("looking at a checkpoint")
    group.add_argument(
        "--compute_report",
        action="store_true",
        help="With --mode inference: print parameters, bytes of weights and masks, multiply-adds of a "
        "forward pass and the share that each task owns (default: only the accuracy).",
    )
    group.add_argument(
        "--report_file", type=Path, help="JSON file to write these to, too (default: only print them)."
    )


def check_report(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the usage for a report of no checkpoint."""
    if args.compute_report and "inference" not in args.mode:
        parser.error("--compute_report: give --mode inference with it")
    if args.report_file and not args.compute_report:
        parser.error("--report_file: give --compute_report with it")


def width_multiplier(text: str) -> float | str:
    """A number greater than 0, or `from_target`."""
    return FROM_TARGET if text == FROM_TARGET else positive_float(text)


def add_width(group: argparse._ArgumentGroup) -> None:
    """The flag of the network's width."""
    group.add_argument(
        "--network_width_multiplier",
        type=width_multiplier,
        default=1.0,
        help="Channels are multiplied by its square root; from_target takes the width that the task "
        "ended at in stage 3-2.",
    )


@dataclass(frozen=True)
class Candidates:
    """Which tasks may become a target's backbone.

    Attributes:
        tasks: names, ids and ranges, or all.
        among: those of them of the "same" modality as the target's, of the "other", or "all".
    """

    tasks: str = "all"
    among: str = "all"

    def __str__(self) -> str:
        return ",".join(dict.fromkeys((self.among, self.tasks))) if self.among != "all" else self.tasks


def candidates(text: str) -> Candidates:
    """Names, ids and ranges between commas; `same` or `other` among them narrows them by modality."""
    parts = [part.strip() for part in text.split(",")]
    among = {part for part in parts if part in ("same", "other")}
    if len(among) > 1:
        raise argparse.ArgumentTypeError(f"{text}: same and other exclude one another; all takes both")
    tasks = ",".join(part for part in parts if part not in among)
    return Candidates(tasks=tasks or "all", among=among.pop() if among else "all")


def add_candidates(group: argparse._ArgumentGroup, *, help: str) -> None:
    """The flag of the tasks that may become a backbone."""
    group.add_argument("--candidates", type=candidates, default=Candidates(), help=help)


def add_mutations(group: argparse._ActionsContainer) -> None:
    """The flag of the search's mutations."""
    group.add_argument(
        "--max_iterations",
        type=non_negative_int,
        help=f"Mutations of the probes; 0 means none (default: {MUTATIONS}, but none where networks are "
        "compared by keys and values).",
    )


def mutations(asked: int | None, *, build: "Builder") -> int:
    """How often the probes of networks of `build` are mutated, from what `--max_iterations` asked for.

    Raises:
        UserError: for mutations of keys and values.
    """
    if not build.multimodal:
        return MUTATIONS if asked is None else asked
    if asked:
        raise UserError(
            f"--max_iterations {asked}: networks of --arch {build.name} are compared by keys and values, "
            "which are not mutated: leave it out"
        )
    return 0


def clip_grad_norm(asked: float | None, *, build: "Builder") -> float | None:
    """The greatest norm of a step's gradients, from what `--clip_grad_norm` asked for; None: any."""
    if asked is None:
        return build.clip_grad_norm
    return None if asked in (0.0, math.inf) else asked


def check_transfers(build: "Builder", *, transfers: bool) -> None:
    """Refuse an architecture that the other script of stage 3-2 trains on backbones.

    Args:
        transfers: whether the script's targets bring K/V projections of their own.

    Raises:
        UserError: naming the other script.
    """
    if build.multimodal and not transfers:
        raise UserError(
            f"--arch {build.name}: its targets bring their own K/V projections to their backbones: take "
            "w_backbone_MM.sh (CPG_MM_main_normal.py), where KV_TRANSFER=0 leaves them out, or run_all_MM.sh"
        )
    if transfers and not build.multimodal:
        raise UserError(
            f"--arch {build.name} has no K/V projections to transfer: take perceiver_io or perceiver, or "
            "w_backbone.sh (CPG_cifar100_main_normal.py), or run_all.sh"
        )


def add_chosen_pairs(group: argparse._ArgumentGroup) -> None:
    """The flags of the file of chosen backbones, for what comes after the choice."""
    add_candidates(
        group,
        help="As in stage 3-1: which of its choices counts, the one among all candidates or among those of "
        "the `same` or the `other` modality.",
    )
    group.add_argument("--csv_path", type=Path, help="CSV of the chosen backbones (default: by the layout).")


def pairs_file(args: argparse.Namespace, config: str) -> Path:
    """CSV of the chosen backbones of table `config`, as the flags of `add_chosen_pairs` name it."""
    return args.csv_path or paths_of(args).result_csv(config, among=args.candidates.among)


def add_sparsities(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag of the pruning ratios."""
    parser.add_argument(
        "--target_sparsity",
        type=sparsity,
        nargs="+",
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
        help="Pruning ratios, run in turn, each from the one before.",
    )


def add_allowed_loss(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag of what pruning may cost."""
    parser.add_argument(
        "--allow_acc_loss",
        type=non_negative_float,
        default=0.001,
        help="Accuracy that a pruned network may lose against the scratch baseline.",
    )


def paths_of(args: argparse.Namespace) -> Paths:
    """The paths of a run."""
    if args.run and (Path(args.run).is_absolute() or ".." in Path(args.run).parts):
        raise UserError(f"--run {args.run}: give a name below the roots, without '..'")
    run = args.run or Paths.run_name(arch=args.arch, seed=args.seed, protocol=args.protocol)
    return Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)


@dataclass(frozen=True)
class Builder:
    """Makes networks of one architecture for one kind of input, at any width.

    Attributes:
        name: of the architecture.
        sizes: those it has beyond the width, all of them; empty for an architecture that has none.
        multimodal: whether its networks read several modalities, each by a K/V projection of its own.
        clip_grad_norm: the greatest norm of a step's gradients, unless told otherwise; None: any.
    """

    name: str
    sizes: dict[str, Any]
    multimodal: bool
    clip_grad_norm: float | None
    make: Callable[..., Any]

    def __call__(self, *, width: float) -> Any:
        try:
            return self.make(width=width, **self.sizes)
        except ValueError as error:
            raise UserError(f"--arch {self.name}: {error}: change the table's size or the width") from error

    def entry(self, layers: str) -> dict:
        """What a checkpoint says of its architecture; `layers`: the kind of layers."""
        return {"name": self.name, "layers": layers} | ({"sizes": self.sizes} if self.sizes else {})


def architecture(
    registry: Mapping[str, Callable],
    name: str,
    *,
    in_channels: int,
    size: int,
    sizes: Mapping[str, Any] | None = None,
) -> Builder:
    """The builder of architecture `name` for images of `in_channels` × `size` × `size`.

    Args:
        sizes: those that were given, by flag (see `given_sizes`).

    Raises:
        UserError: listing the known ones; naming sizes that it does not have; the builder raises it for a
            size or width that it cannot take.
    """
    resolved = resolved_sizes(registry, name, sizes or {})
    return Builder(
        name=name,
        sizes=resolved,
        multimodal=getattr(registry[name], "multimodal", False),
        clip_grad_norm=getattr(registry[name], "clip_grad_norm", None),
        make=partial(registry[name], in_channels=in_channels, size=size),
    )


def asked_architecture(
    registry: Mapping[str, Callable], args: argparse.Namespace, *, in_channels: int, size: int
) -> Builder:
    """The builder of what `--arch` and the size flags ask for. See `architecture`."""
    return architecture(registry, args.arch, in_channels=in_channels, size=size, sizes=given_sizes(args))


def resolved_sizes(registry: Mapping[str, Callable], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All sizes of architecture `name`: its defaults, changed by the preset, changed by what was given.

    Raises:
        UserError: for an unknown architecture, or naming sizes that it does not have.
    """
    if name not in registry:
        raise UserError(f"--arch {name} is unknown: choose one of {', '.join(sorted(registry))}")
    defaults = getattr(registry[name], "sizes", {})
    presets = getattr(registry[name], "presets", {})
    given = dict(given)
    unknown = [f"--{flag}" for flag in given if flag not in defaults and not (flag == "size" and presets)]
    if unknown:
        raise UserError(f"--arch {name} has no {', '.join(unknown)}: leave it out")
    preset = given.pop("size", "base")
    if defaults and preset not in presets:
        raise UserError(f"--size {preset} is unknown to --arch {name}: choose one of {', '.join(presets)}")
    return {**defaults, **presets.get(preset, {}), **given}


# Flags that name something of one task.
_OF_ONE_TASK = ("load_folder", "save_folder", "pruning_ratio_to_acc_record_file", "report_file")


def check_of_one_task(args: argparse.Namespace, tasks: Sequence) -> None:
    """Refuse a folder or file of one task for several `tasks`."""
    given = [f"--{name}" for name in _OF_ONE_TASK if getattr(args, name, None)]
    if given and len(tasks) > 1:
        raise UserError(f"{', '.join(given)} is of one task: give one with --dataset")


def check_num_classes(asked: int, *, task: str, num_classes: int) -> None:
    """Refuse a `--num_classes` that contradicts the task table."""
    if asked not in (-1, num_classes):
        raise UserError(f"--num_classes {asked}: task {task} has {num_classes} classes in its table")
