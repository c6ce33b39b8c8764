"""Recipes: every setting that affects a result is recorded with it, and old outputs are still recognised."""

import argparse
import ast
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import spg_main
from methods.approaches import APPROACHES
from methods.approaches.base import Settings
from pipeline import flags, train_task
from pipeline.cpg_sequence import TaskInSequence
from pipeline.recipe import Recipe, SequenceTaskRecipe
from pipeline.train_task import TaskRun
from tests.helpers import REPOSITORY, Fleet, load, refusal
from training.outputs import Output

# Flags of the training scripts that set where and how a run happens, or which outputs it makes. Every other
# flag affects a result, and must change the recipe of some output.
EXEMPT = {
    *("data_root", "checkpoints_root", "logs_root", "run", "device", "threads", "val_batch_size"),
    "gpus_per_task",
    *("overwrite", "list_unfinished", "log_path", "logfile", "load_folder", "save_folder", "jsonfile"),
    "log_to",
    *("compute_report", "report_file", "num_classes", "csv_path", "candidates", "mode", "backbone"),
    *("pruning_ratio_to_acc_record_file", "target_sparsity", "max_allowed_network_width_multiplier"),
    *("fleet", "reuse", "freed"),  # of a target on a backbone: tests/pipeline/test_controls.py
    *("total_num_tasks", "stop_pruning_early", "keep_checkpoints", "allow_acc_loss"),
    # Recorded as the task, its data and the network's start; tested with other tables, tasks and files.
    *("dataset_config", "dataset", "text_encoder", "use_imagenet_pretrained", "pretrained_file"),
    # Sizes belong to Perceivers (tests/pipeline/test_sizes.py), which --arch selects.
    *("size", *flags._SIZES, "arch"),
}
OTHER_VALUES = {
    "seed": "2",
    "protocol": "heldout",
    "train_per_class": "9",
    "precision": "bf16",
    "nondeterministic": None,
    "epochs": "7",
    "batch_size": "16",
    "lr": "0.5",
    "weight_decay": "0.5",
    "clip_grad_norm": "0.5",
    "network_width_multiplier": "1.5",
    "lr_mask": "0.5",
    "prune_epochs": "7",
    "prune_lr": "0.5",
    "pruning_interval": "1",
    "pruning_frequency": "7",
    "initial_sparsity": "0.05",
}


def parser_of(script: object, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The script's own argument parser."""
    made = []
    with monkeypatch.context() as patched:
        patched.setattr(flags, "parser", lambda text: made.append(argparse.ArgumentParser(text)) or made[0])
        script.parse([])
    return made[0]


@pytest.mark.parametrize("script", [packnet_script, cpg_script])
def test_every_flag_changes_a_recipe_or_is_known_not_to_affect_results(
    script: object, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {action.dest for action in parser_of(script, monkeypatch)._actions} - {"help"}
    assert names <= EXEMPT | OTHER_VALUES.keys(), "classify the new flag"

    finished = load(fleet.scratch_checkpoint("zero_one"))
    stamps: list[dict] = []

    def recorded(self: TaskRun, recipe, **_: object) -> dict:
        stamps.append(recipe.stamp())
        return finished

    monkeypatch.setattr(TaskRun, "train", recorded)
    monkeypatch.setattr("pipeline.cpg.CPGTask.finish_target", lambda *_: None)

    def run(*more: str) -> list[dict]:
        stamps.clear()
        shared = ("--run", fleet.run, *more)
        if script is packnet_script:
            script.main(fleet.baseline_flags("1", *shared))
            source = fleet.baseline_checkpoint("zero_one").parent
            script.main(fleet.baseline_flags("1", "--mode", "prune", "--load_folder", source, *shared))
        else:
            (fleet.paths.pruned("digits", "zero_one") / "0.05").mkdir(exist_ok=True)
            torch.save(finished, fleet.paths.pruned("digits", "zero_one") / "0.05/checkpoint-3.pth.tar")
            script.main(fleet.own_flags("1", *shared))
            script.main(fleet.target_flags("3", *shared))
        return list(stamps)

    usual = run()
    for name in sorted(names & OTHER_VALUES.keys()):
        value = OTHER_VALUES[name]
        changed = run(f"--{name}", *([] if value is None else [value]))
        assert changed != usual, f"--{name} has an effect but is not recorded"


def test_every_flag_of_a_sequence_changes_the_recipe_of_its_tasks(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps: list[dict] = []

    class Asked(Exception):
        pass

    def recorded(self: TaskInSequence, before: dict | None, *, recipe: SequenceTaskRecipe) -> dict:
        stamps.append(recipe.stamp())
        raise Asked

    monkeypatch.setattr(TaskInSequence, "choose", recorded)

    def stamp(*more: str) -> dict:
        with pytest.raises(Asked):
            cpg_script.main(fleet.own_flags("1", "--total_num_tasks", "1", "--run", fleet.run, *more))
        return stamps[-1]

    usual = stamp()
    more = {"allow_acc_loss": "0.5", "stop_pruning_early": None, "target_sparsity": "0.4"}
    more |= {"max_allowed_network_width_multiplier": "1.5"}
    for name, value in (OTHER_VALUES | more).items():
        if name != "initial_sparsity":  # not allowed in sequence
            assert stamp(f"--{name}", *([] if value is None else [value])) != usual, name


# Where a setting that recipes record may be read from the flags, beside the recipe itself.
READERS = {
    *("set_up_process", "Compute", "run_name", "protocol", "checkpoint_name"),
    *("load_task", "recorded_freed", "resolved_clip_grad_norm", "resolved_mutations", "Batches", "range"),
}


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("stage", ["scratch", "cpg", "cpg_sequence", "race", "search", "spg", "train_task"])
def test_stages_act_by_their_recipes_rather_than_by_flags(stage: str) -> None:
    """A flag that a recipe records may be read only to make the recipe."""
    recorded = {item.name for kind in all_recipes(Recipe) for item in fields(kind)}
    tree = ast.parse((REPOSITORY / "pipeline" / f"{stage}.py").read_text())
    excused = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (called(call).endswith("Recipe") or called(call) in READERS):
            excused |= {id(node) for node in ast.walk(call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "args":
            known = node.attr not in recorded or id(node) in excused or node.attr in CHOOSING
            assert known, f"{stage}.py, line {node.lineno}: {ast.unparse(node)}"


# These choose stages, inputs or outputs, whose recipes then differ (text encoders by their identity).
CHOOSING = {"backbone", "target_sparsity", "initial_sparsity", "appr", "seq", "arch", "select"} | {
    *("network_width_multiplier", "max_allowed_network_width_multiplier", "dropout", "run", "text_encoder"),
    *("candidates", "first_rule"),
}


def all_recipes(kind: type) -> list[type]:
    return [kind, *(found for child in kind.__subclasses__() for found in all_recipes(child))]


def test_every_setting_of_an_approach_is_recorded(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [f"--{name}_root={tmp_path / name}" for name in ("checkpoints", "logs")]
    for name, approach in APPROACHES.items():
        argv = [f"--data_root={digits_root}", *roots, "--epochs", "1", "--device", "cpu", "--appr", name]
        spg_main.main(argv)
        (path,) = (tmp_path / "checkpoints" / "spg" / "digits_5" / name).rglob("*/train/checkpoint-1.pth.tar")
        made = load(path)["arguments"]
        declared = {item.name for kind in (Settings, approach.Options) for item in fields(kind)}
        assert declared <= made.keys()
        others = {item.name for other in APPROACHES.values() for item in fields(other.Options)}
        assert not (others - declared) & made.keys(), "options of other approaches have no effect"


# Outputs of earlier versions


def without(path: Path, entry: str) -> None:
    """Remove an entry of a checkpoint's recipe, as in versions that did not record it."""
    payload = load(path)
    del payload["arguments"][entry]
    torch.save(payload, path)


@pytest.mark.parametrize("epochs", [1, 2])
def test_old_runs_of_one_or_two_epochs_are_refused_by_name(epochs: int, fresh: Fleet) -> None:
    """Their learning rate dropped before the first epoch, or once instead of twice."""
    short = ("--epochs", epochs)
    fresh.baseline("1", *short)
    fresh.baseline("1", *short)
    without(fresh.baseline_checkpoint("zero_one"), "lr_drops")
    assert "lr_drops (none recorded" in refusal(packnet_script.main, fresh.baseline_flags("1", *short))


def test_longer_runs_record_no_new_entries(trained_fleet: Fleet) -> None:
    """Otherwise outputs of earlier versions would not be recognised."""
    for path in (trained_fleet.baseline_checkpoint("zero_one"), trained_fleet.scratch_checkpoint("zero_one")):
        assert set(load(path)["arguments"]) - {"lr_mask", "parent"} == {
            *("arch", "seed", "protocol", "precision", "batch_size", "weight_decay", "config", "task"),
            *("stage", "epochs", "clip_grad_norm", "data", "lr"),
            *("width_multiplier", "pretrained"),
        }


def test_choices_made_with_the_old_mutation_are_refused_by_name(fleet: Fleet) -> None:
    fleet.paths.result_csv("digits", rule="given").unlink()  # earlier versions did not write it
    path = fleet.paths.result_csv("digits").with_suffix(".csv.arguments.json")
    entries = json.loads(path.read_text())
    assert entries["3"].pop("mutation") == "better sign"
    path.write_text(json.dumps(entries))
    argv = fleet.search_flags("3", "--backbone", "zero_one")
    assert "mutation (none recorded, better sign requested)" in refusal(search_script.main, argv)
    entries["3"]["max_iterations"] = 0
    path.write_text(json.dumps(entries))
    fleet.search("3", "--backbone", "zero_one", "--max_iterations", "0")


def test_sequences_learned_with_the_old_plateau_rule_are_refused_by_name(
    digits_root: Path, tmp_path: Path
) -> None:
    roots = [f"--{name}_root={tmp_path / name}" for name in ("checkpoints", "logs")]
    argv = [f"--data_root={digits_root}", *roots, "--epochs", "1", "--device", "cpu", "--appr", "ncl"]
    spg_main.main(argv)
    (path,) = (tmp_path / "checkpoints").rglob("checkpoint-1.pth.tar")
    without(path, "lr_threshold")
    assert "lr_threshold (none recorded, 0.0001 requested)" in refusal(spg_main.main, argv)


# Finished checkpoints


def test_a_finished_checkpoint_holds_no_training_state(trained_fleet: Fleet) -> None:
    """Optimizers, generators and the best state are in the resume file, which is removed."""
    paths = [*trained_fleet.checkpoints.rglob("checkpoint-*.pth.tar")]
    assert paths and not [*trained_fleet.checkpoints.rglob("resume*")]
    for path in paths:
        assert load(path).keys() - {"selection"} == {
            *("format_version", "model_state_dict", "dataset_history", "dataset2num_classes", "masks"),
            *("shared_layer_info", "arrivals", "architecture", "arguments", "task_table", "epoch", "metrics"),
        }


def test_finished_checkpoints_with_training_state_are_still_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions left the states of optimizers and generators in finished checkpoints."""
    path = fleet.baseline_checkpoint("zero_one")
    finished = load(path)
    with monkeypatch.context() as patched:
        states = []
        patched.setattr(
            Output, "save_unfinished", lambda self, payload, progress: states.append(vars(progress))
        )
        patched.setattr(train_task, "SAVING_SHARE", 1e9)
        fleet.baseline("1", "--overwrite")
    state = dict(states[-1])
    torch.save(finished | {"progress": state, "epoch": state["epoch"]}, path)
    fleet.baseline("1")
    fleet.own("1")
    assert "progress" in load(path)
