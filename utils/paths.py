"""Names of all files that stages exchange. No other module composes one."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent

RESUME_NAME = "resume.pth.tar"
TRAIN_CSV = "train.csv"
CONFIG_JSON = "config.json"
LOCK_NAME = ".output.lock"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pth\.tar")


def default_root(name: str) -> Path:
    """Default root for `data`, `checkpoints` or `logs`, from the environment or in the repository."""
    return Path(os.environ.get(f"{name.upper()}_ROOT") or REPOSITORY / name)


def checkpoint_name(epoch: int) -> str:
    """File name of the checkpoint after `epoch` epochs."""
    return f"checkpoint-{epoch}.pth.tar"


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Finished checkpoints directly inside `folder`, by epoch."""
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).glob("checkpoint-*.pth.tar"))
    return {int(match.group(1)): path for match, path in found if match}


def checkpoint_in(folder: Path, *, remedy: str) -> Path:
    """The checkpoint in `folder` with the highest epoch.

    Raises:
        UserError: if there is none; `remedy` ends the message.
    """
    found = checkpoints_in(folder)
    if not found:
        raise UserError(f"{Path(folder) / 'checkpoint-<epoch>.pth.tar'} not found: {remedy}")
    return found[max(found)]


_RUN_PART = re.compile(r"\w[\w.+=-]*")
_LONGEST_RUN = 200


def check_run(name: str) -> str:
    """A run's name: words separated by `/`, none of which begins with a dot or a dash.

    So it never leaves the roots, whatever the file system.

    Raises:
        UserError: for any other name.
    """
    if len(name) > _LONGEST_RUN or not all(_RUN_PART.fullmatch(part) for part in name.split("/")):
        raise UserError(
            f"the name of a run cannot be {name!r}: use letters, digits and . _ + = -, in words separated by "
            f"slashes, none beginning with a dot or a dash, {_LONGEST_RUN} characters at most"
        )
    return name


@dataclass(frozen=True)
class Paths:
    """Paths of one run's files.

    Args:
        checkpoints, logs, data: the three roots.
        run: `<arch>/seed<seed>`, followed by `-n<N>` if N training samples are drawn per class and by
            `-heldout` under that protocol, or the user's name for it.
    """

    checkpoints: Path
    logs: Path
    data: Path
    run: str

    def __post_init__(self) -> None:
        check_run(self.run)

    @staticmethod
    def run_name(*, arch: str, seed: int, protocol: str, train_per_class: int | None = None) -> str:
        """Default name of a run.

        Args:
            train_per_class: training samples per class; 0: all; None: as the table says.
        """
        drawn = "" if train_per_class is None else f"-n{train_per_class or 'all'}"
        return f"{arch}/seed{seed}{drawn}" + ("-heldout" if protocol == "heldout" else "")

    @staticmethod
    def study_run_name(*, arch: str, seed: int, per_class: str) -> str:
        """Name of a run of the study, whose candidates have all images and whose targets have `per_class`."""
        return f"study/{arch}/seed{seed}" + ("" if per_class == "all" else f"-n{per_class}")

    @staticmethod
    def continual_run_name(*, sequence: str, approach: str, seed: int, arch: str = "alexnet") -> str:
        """Default name of a run that learns a sequence of tasks in one network."""
        learner = approach if arch == "alexnet" else f"{approach}-{arch}"
        return f"spg/{sequence}/{learner}/seed{seed}"

    @staticmethod
    def tuning_run_name(run: str, *, dropout: Sequence[float]) -> str:
        """Name of a tuning run, which tries one pair of dropout rates for `run`."""
        return f"{run}/tune/{'-'.join(map(str, dropout))}"

    # Files shared by all tasks of a table

    def baseline_file(self, config: str, *, width_multiplier: float = 1.0) -> Path:
        """JSON {task: accuracy} of the scratch networks (stage 1)."""
        return self.logs / self.run / f"baseline_{config}_acc_scratch{_wide(width_multiplier)}.txt"

    def result_csv(self, config: str, *, among: str = "all", rule: str | None = None) -> Path:
        """CSV target_id,task_id of the chosen backbones.

        Args:
            among: candidates of the target's modality ("same"), of another ("other"), or "all".
            rule: the rule that chose, "given" for tasks given by name; None: the last choice, by any rule.
        """
        chosen_by = "" if rule is None else f"_{rule}"
        return self.logs / self.run / f"pickaback_{config}_result{_among(among)}{chosen_by}.csv"

    def table_csv(self, config: str, *, among: str = "all") -> Path:
        """CSV target_id,task_id,ddv_cos,ddv_euc,… of all candidates' distances and other scores."""
        return self.logs / self.run / f"pickaback_{config}_table{_among(among)}.csv"

    def stage_log(self, config: str, stage: str) -> Path:
        """Log of a stage that has no checkpoint folder of its own."""
        return self.logs / self.run / f"{stage}_{config}.log"

    def report_file(self, config: str, *, seeds: Sequence[int] = ()) -> Path:
        """CSV of the latest report; of one over several `seeds`, in the run of the first of them."""
        return self.logs / self.run / f"report_{config}{_over(seeds)}.csv"

    def federation_file(self, config: str) -> Path:
        """JSON of what the server of a federation keeps: finished targets, and bytes of messages."""
        return self.logs / self.run / f"federation_{config}.json"

    def tracking(self) -> Path:
        """Folder of the experiment trackers' files."""
        return self.logs / self.run / "tracking"

    # One folder per task and stage

    def baselines(self, config: str, *, width_multiplier: float = 1.0) -> Path:
        """Folder of all tasks' scratch networks (stage 1)."""
        return self._stage(f"baseline_scratch{_wide(width_multiplier)}", config)

    def single(self, config: str, task: str) -> Path:
        """Folder of a task's own network (stage 2-1)."""
        return self._stage("CPG_single_scratch_woexp", config) / task

    def single_scratch(self, config: str, task: str) -> Path:
        """Folder of a task's own network before pruning."""
        return self.single(config, task) / "scratch"

    def pruned(self, config: str, task: str) -> Path:
        """Folder of the pruned networks, of `record.txt` and of the chosen checkpoint."""
        return self.single(config, task) / "gradual_prune"

    def target(self, config: str, backbone: str, target: str, *, kv_transfer: bool = True) -> Path:
        """Folder of a target trained on a backbone (stage 3-2).

        Args:
            kv_transfer: False for the control that skips the K/V transfer.
        """
        stage = "CPG_fromsingle_scratch_woexp_target" + ("" if kv_transfer else "_no_kv_transfer")
        return self._stage(stage, config) / backbone / target / "scratch"

    def reused(self, config: str, backbone: str, target: str, *, how: str) -> Path:
        """Folder of a control that reuses a backbone's network in another way ("copy" or "probe")."""
        return self._stage(f"CPG_control_{how}", config) / backbone / target

    def control(self, config: str, task: str, *, width_multiplier: float) -> Path:
        """Folder of the control without a backbone: the target's network at a grown width."""
        return self._stage("CPG_control_scratch", config) / task / f"width-{width_multiplier}"

    # All tasks of a table, learned in sequence in one network

    def in_sequence(self, config: str, number: int, task: str) -> Path:
        """Folder of the `number`-th task (from 1) learned in sequence in one network."""
        return self._stage("CPG_sequence", config) / f"{number:02}_{task}"

    def in_sequence_report(self, config: str, *, seeds: Sequence[int] = ()) -> Path:
        """CSV of each task's accuracy when it was learned and at the end; `seeds` as in `report_file`."""
        return self.logs / self.run / f"cpg_sequence_{config}{_over(seeds)}.csv"

    # A run of SPG or an approach compared with it, on a sequence of tasks

    def continual_log(self) -> Path:
        """Log of the run."""
        return self.logs / self.run / "train.log"

    def accuracy_matrix(self) -> Path:
        """CSV of the accuracy on every task after learning each task."""
        return self.logs / self.run / "accuracy_matrix.csv"

    def metrics_file(self) -> Path:
        """JSON of the metrics, epochs and times."""
        return self.logs / self.run / "metrics.json"

    def configuration_file(self) -> Path:
        """JSON of all resolved arguments."""
        return self.logs / self.run / CONFIG_JSON

    def tuning_file(self) -> Path:
        """CSV conv,rest,accuracy of all dropout rates that the search of this tuning run has tried."""
        return (self.logs / self.run).parent.with_suffix(".csv")

    @staticmethod
    def continual_report(logs: Path, *, sequence: str, arch: str = "alexnet") -> Path:
        """CSV of the latest comparison of approaches on a sequence."""
        return logs / "spg" / sequence / ("report.csv" if arch == "alexnet" else f"report-{arch}.csv")

    def continual_checkpoints(self) -> Path:
        """Folder of all checkpoints of the run."""
        return self.checkpoints / self.run

    def continual_task(self, task: str, stage: str) -> Path:
        """Folder of one stage of one task."""
        return self.continual_checkpoints() / task / stage

    def _stage(self, stage: str, config: str) -> Path:
        return self.checkpoints / self.run / stage / config


def kv_transfer_file(checkpoint: Path, target: str) -> Path:
    """The copy of a backbone's `checkpoint` that holds the K/V projection of `target` (stage 3-1b)."""
    return checkpoint.with_name(checkpoint.name.replace(".", f"_kv_transfer_{target}.", 1))


def arguments_file(output: Path) -> Path:
    """JSON of the arguments that made each entry of a shared file."""
    return output.with_name(f"{output.name}.arguments.json")


def record_file(pruned: Path) -> Path:
    """JSON {sparsity: accuracy} in the folder `pruned`."""
    return pruned / "record.txt"


def control_file(folder: Path) -> Path:
    """JSON of what a control on a backbone reached, in its folder."""
    return folder / "control.json"


def sparsity_folder(pruned: Path, sparsity: float) -> Path:
    """Folder of the network pruned to `sparsity`, in the folder `pruned`."""
    return pruned / str(sparsity)


def width_folder(folder: Path, width_multiplier: float) -> Path:
    """Folder of one width, in a target's folder."""
    return folder / f"width-{width_multiplier}"


def widths_file(folder: Path) -> Path:
    """JSON of the accuracy at each width, in a target's folder."""
    return folder / "widths.json"


_STAGE_FOLDER = re.compile(r"(baseline_scratch|CPG_\w+?)(_width-[\d.]+)?")


@dataclass(frozen=True)
class Place:
    """Where a folder under the root of checkpoints belongs.

    Attributes:
        run: the run's name.
        stage: name of the stage's folder without a width; empty for the folders of SPG.
        config: the task table; empty for the folders of SPG.
    """

    run: str
    stage: str
    config: str


def place_of(folder: Path, *, checkpoints: Path) -> Place:
    """Where `folder` belongs; `run` is the whole relative path if it is not in a stage's folder."""
    parts = folder.relative_to(checkpoints).parts
    for index, part in enumerate(parts):
        stage = _STAGE_FOLDER.fullmatch(part)
        if stage and index:
            config = parts[index + 1] if index + 1 < len(parts) else ""
            return Place("/".join(parts[:index]), stage[1], config)
    return Place("/".join(parts), "", "")


# The script that writes the checkpoints in a folder of the layout.
_SCRIPTS = {
    "baseline_scratch": "baseline.sh",
    "CPG_single_scratch_woexp": "wo_backbone.sh",
    "CPG_fromsingle_scratch_woexp_target": "w_backbone.sh or w_backbone_MM.sh",
    "CPG_fromsingle_scratch_woexp_target_no_kv_transfer": "w_backbone_MM.sh",
    "CPG_control_copy": "w_backbone.sh with REUSE=copy",
    "CPG_sequence": "cpg_sequence.sh",
    "spg": "spg.sh",
}


def redo_command(checkpoint: Path) -> str:
    """How to write a checkpoint again, for messages."""
    checkpoint = Path(checkpoint)
    scripts = [_SCRIPTS[part] for part in reversed(checkpoint.parts[:-1]) if part in _SCRIPTS]
    if "_kv_transfer_" in checkpoint.name:
        script = "transfer_kv.sh"
    elif scripts[:1] == ["wo_backbone.sh"] and checkpoint.parent.name == "gradual_prune":
        script = "select_pruning_ratio_of_backbone.sh"
    else:
        script = scripts[0] if scripts else ""
    if not script:
        return "run its stage again with --overwrite"
    return f"run its stage again: OVERWRITE=1 bash run_pickaback/{script}"


def _among(modality: str) -> str:
    return "" if modality == "all" else f"_{modality}"


def _over(seeds: Sequence[int]) -> str:
    return f"_seeds-{'-'.join(map(str, seeds))}" if seeds else ""


def _wide(width_multiplier: float) -> str:
    return "" if width_multiplier == 1.0 else f"_width-{width_multiplier}"
