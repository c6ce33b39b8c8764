"""Bad input: it always ends in one line that names the file and the remedy, and loses nothing."""

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import CPG_MM_main_normal as mm_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from data import cache
from data.loading import load_split
from data.tables import load_table
from methods.ownership import OwnedTraining
from tests.helpers import Fleet, command, error_lines, load, refusal, run_process, snapshot
from tools import select_pruning_ratio as select_script
from training.checkpoints import load_checkpoint
from utils.errors import UserError

SCRIPTS = [packnet_script, cpg_script, search_script, select_script]


# Names.


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_unknown_names_list_the_known_ones(script: object, fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    message = refusal(script.main, fleet.files("--dataset", "fish"))
    assert "'fish'" in message and "1 zero_one, 2 two_three, 3 four_five" in message
    assert "'9'" in refusal(script.main, fleet.files("--dataset", "3-9"))
    message = refusal(script.main, fleet.files("--dataset_config", "cifar1000"))
    assert "'cifar1000'" in message and "digits, digits_few, cifar100" in message
    if script is not select_script:
        message = refusal(script.main, fleet.files("--dataset", "1", "--arch", "resnet5000"))
        assert "resnet5000" in message and "lenet5" in message
    assert snapshot(fleet.root) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--backbone", "fish"), "1 zero_one"),
        (("--backbone", "3"), "is the target itself"),
        (("--backbone", "1", "--network_width_multiplier", "3"), "--max_allowed_network_width_multiplier"),
        (("--backbone", "1", "--network_width_multiplier", "0.5"), "cannot be made narrower"),
        (("--num_classes", "5"), "four_five has 2 classes"),
        (("--dataset", "1-2", "--save_folder", "x"), "--save_folder belongs to one task"),
        (("--dataset", "1-2", "--load_folder", "x"), "--load_folder belongs to one task"),
        (("--dataset", "1-2", "--pruning_ratio_to_acc_record_file", "x"), "belongs to one task"),
    ],
)
def test_flags_that_contradict_the_tasks_are_refused(flags: tuple, named: str, fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    assert named in refusal(cpg_script.main, fleet.target_flags("3", *flags))
    assert snapshot(fleet.root) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--candidates", "3"), "leaves none for target four_five"),
        (("--candidates", "fish"), "1 zero_one"),
        (("--backbone", "fish"), "1 zero_one"),
        (("--backbone", "3"), "is the target itself"),
        (("--target_id", "fish"), "1 zero_one"),
        (("--candidates", "4"), "baseline.sh"),
    ],
)
def test_impossible_searches_are_refused(flags: tuple, named: str, fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    assert named in refusal(search_script.main, fleet.search_flags("3", *flags))
    assert snapshot(fleet.root) == before


def test_an_architecture_without_projections_is_refused_across_modalities(fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    flags = fleet.target_flags("3", "--arch", "lenet5", "--dataset_config", "digits")
    message = refusal(mm_script.main, flags)
    assert "--arch lenet5 has no K/V projections to transfer: use perceiver_io" in message
    assert snapshot(fleet.root) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("script", SCRIPTS[:3], ids=lambda script: script.__name__)
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_missing_device_is_refused(script: object, device: str, fleet: Fleet) -> None:
    message = refusal(script.main, fleet.flags("--dataset", "1", "--device", device))
    assert f"--device {device}" in message and "0 CUDA devices" in message and "cpu" in message


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", ""])
def test_an_unknown_device_name_is_refused(device: str, fleet: Fleet) -> None:
    message = refusal(packnet_script.main, fleet.flags("--dataset", "1", "--device", device))
    assert "auto, cpu, cuda or cuda:<i>" in message


# Checkpoints.


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def changed(path: Path, **changes: object) -> None:
    """Rewrite a checkpoint with changed entries; None removes an entry."""
    payload = load(path) | changes
    torch.save({key: value for key, value in payload.items() if value is not None}, path)


def without(mapping: dict, name: str) -> dict:
    return {key: value for key, value in mapping.items() if key != name}


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def spoil_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def spoil_to_text(path: Path) -> None:
    path.write_text("not a checkpoint\n")


def spoil_to_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"trap": Trap(path.with_name("sprung"))}))


def spoil_to_saved_object(path: Path) -> None:
    torch.save({"model_state_dict": Trap(path.with_name("sprung"))}, path)


def spoil_to_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def spoil_without_masks(path: Path) -> None:
    changed(path, masks=None)


def spoil_masks_kind(path: Path) -> None:
    changed(path, masks=[1, 2])


def spoil_weight_kind(path: Path) -> None:
    changed(path, model_state_dict=load(path)["model_state_dict"] | {"features.0.weight": 1.0})


def spoil_missing_weight(path: Path) -> None:
    changed(path, model_state_dict=without(load(path)["model_state_dict"], "features.0.weight"))


def spoil_unknown_weight(path: Path) -> None:
    changed(path, model_state_dict=load(path)["model_state_dict"] | {"features.99.weight": torch.zeros(1)})


def spoil_missing_mask(path: Path) -> None:
    changed(path, masks=without(load(path)["masks"], "features.0"))


def spoil_weight_shape(path: Path) -> None:
    state = load(path)["model_state_dict"]
    changed(path, model_state_dict=state | {"features.0.weight": torch.zeros(7, 3, 5, 5)})


def spoil_without_head(path: Path) -> None:
    changed(path, model_state_dict=without(load(path)["model_state_dict"], "classifiers.0.weight"))


def spoil_class_count(path: Path) -> None:
    changed(path, dataset2num_classes={"zero_one": 5})


def spoil_without_task(path: Path) -> None:
    changed(path, shared_layer_info={})


def spoil_no_history(path: Path) -> None:
    changed(path, dataset_history=[])


def spoil_architecture(path: Path) -> None:
    changed(path, architecture={"name": "vgg16", "layers": "plain"})


def spoil_version(path: Path) -> None:
    changed(path, format_version=99)


DAMAGES = {
    spoil_truncated: "is truncated or not a checkpoint: run its stage again",
    spoil_to_nothing: "is truncated or not a checkpoint: run its stage again",
    spoil_to_text: "not a checkpoint",
    spoil_to_pickle: "is not opened",
    spoil_to_saved_object: "is not opened",
    spoil_to_list: "is not a checkpoint of this project",
    spoil_without_masks: "it lacks masks",
    spoil_masks_kind: "masks",
    spoil_weight_kind: "features.0.weight",
    spoil_missing_weight: "missing weights features.0.weight",
    spoil_unknown_weight: "unknown weights features.99.weight",
    spoil_missing_mask: "missing masks features.0",
    spoil_weight_shape: "features.0.weight has the shape (7, 3, 5, 5)",
    spoil_without_head: "no head for task zero_one",
    spoil_class_count: "2 classes",
    spoil_without_task: "lacks its entry",
    spoil_no_history: "holds no task",
    spoil_architecture: "is a vgg16",
    spoil_version: "format 99",
}


def name_of(function: object) -> str:
    return getattr(function, "__name__", "").removeprefix("spoil_")


@pytest.mark.parametrize(("damage", "named"), DAMAGES.items(), ids=name_of)
def test_a_damaged_checkpoint_is_refused_by_name(
    damage: Callable[[Path], None], named: str, fleet: Fleet, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    path = folder / "checkpoint-4.pth.tar"
    path.write_bytes(fleet.baseline_checkpoint("zero_one").read_bytes())
    damage(path)
    flags = ("--mode", "inference", "--load_folder", folder)
    message = refusal(packnet_script.main, fleet.flags("--dataset", "1", *flags))
    assert str(path) in message and named in message
    assert not (folder / "sprung").exists()


def test_the_trap_springs_when_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "file"
    spoil_to_pickle(path)
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sprung").exists()


def test_a_checkpoint_truncated_anywhere_is_refused_by_name(trained_fleet: Fleet, tmp_path: Path) -> None:
    whole = trained_fleet.baseline_checkpoint("zero_one").read_bytes()
    path = tmp_path / "checkpoint-4.pth.tar"
    for size in range(0, len(whole) - 1, len(whole) // 60):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"run its stage again with --overwrite|is not opened") as caught:
            load_checkpoint(path, architecture="lenet5", layers="plain")
        assert str(path) in str(caught.value)


def test_a_cache_truncated_anywhere_is_rebuilt(trained_fleet: Fleet, tmp_path: Path) -> None:
    table = load_table("digits", data_root=tmp_path)
    path = cache.path_of(tmp_path, "digits", "zero_one", "test")
    made = load_split(table, table.tasks[0], "test", data_root=tmp_path)
    fingerprint, whole = made["fingerprint"], path.read_bytes()
    for size in range(0, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:size])
        assert load_split(table, table.tasks[0], "test", data_root=tmp_path)["fingerprint"] == fingerprint


def test_a_damaged_finished_checkpoint_stops_the_stage_and_overwrite_redoes_it(fleet: Fleet) -> None:
    path = fleet.baseline_checkpoint("zero_one")
    whole = path.read_bytes()
    spoil_truncated(path)
    assert str(path) in refusal(packnet_script.main, fleet.baseline_flags("1"))
    fleet.baseline("1", "--overwrite")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["plain for sharable", "sharable for plain"])
def test_a_checkpoint_with_the_wrong_layers_is_refused(kind: str, fleet: Fleet) -> None:
    plain, sharable = fleet.baseline_checkpoint("zero_one"), fleet.scratch_checkpoint("zero_one")
    script, path = (cpg_script, plain) if kind.startswith("plain") else (packnet_script, sharable)
    flags = ("--dataset", "1", "--mode", "inference", "--load_folder", path.parent)
    message = refusal(script.main, fleet.flags(*flags))
    assert str(path) in message and "plain layers" in message and "sharable layers" in message
    # A published checkpoint does not record its layers; its state names show them.
    changed(path, architecture=None)
    message = refusal(script.main, fleet.flags(*flags))
    assert str(path) in message and "another architecture" in message


def test_a_checkpoint_that_lacks_the_task_is_refused_by_name(fleet: Fleet) -> None:
    folder = fleet.paths.pruned("digits", "two_three")
    message = refusal(cpg_script.main, fleet.target_flags("3", "--backbone", "1", "--load_folder", folder))
    assert f"{folder}" in message and "no task zero_one: it holds two_three" in message


def test_inference_as_a_task_that_the_checkpoint_lacks_is_refused_by_name(fleet: Fleet) -> None:
    folder = fleet.target_folder()
    flags = ("--dataset", "2", "--mode", "inference", "--load_folder", folder)
    message = refusal(cpg_script.main, fleet.flags(*flags))
    assert str(folder) in message and "no task two_three: it holds zero_one, four_five" in message


def spoil_running_mean(group: dict) -> dict:
    return without(group, "features.1")


def spoil_unknown_layer(group: dict) -> dict:
    return group | {"features.99": group["features.1"]}


def spoil_running_mean_shape(group: dict) -> dict:
    return group | {"features.1": torch.zeros(7)}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (spoil_running_mean, "features.1.running_mean"),
        (spoil_unknown_layer, "features.99.running_mean"),
        (spoil_running_mean_shape, "features.1.running_mean"),
    ],
    ids=name_of,
)
def test_a_checkpoint_whose_task_tensors_do_not_fit_is_refused_by_name(
    damage: Callable[[dict], dict], named: str, fleet: Fleet
) -> None:
    path = fleet.target_folder() / "checkpoint-4.pth.tar"
    tasks = load(path)["shared_layer_info"]
    group = damage(tasks["zero_one"]["bn_layer_running_mean"])
    changed(
        path, shared_layer_info=tasks | {"zero_one": tasks["zero_one"] | {"bn_layer_running_mean": group}}
    )
    flags = ("--dataset", "1", "--mode", "inference", "--load_folder", path.parent)
    message = refusal(cpg_script.main, fleet.flags(*flags))
    assert str(path) in message and named in message


def test_missing_outputs_of_earlier_stages_name_the_stage(fresh: Fleet, tmp_path: Path) -> None:
    message = refusal(cpg_script.main, fresh.own_flags("1", "--mode", "prune"))
    assert str(fresh.paths.single_scratch("digits", "zero_one")) in message and "--mode finetune" in message
    message = refusal(search_script.main, fresh.search_flags("3"))
    assert str(fresh.paths.baselines("digits")) in message and "baseline.sh" in message
    message = refusal(select_script.main, fresh.select_flags("1"))
    assert "record.txt not found" in message and "wo_backbone.sh" in message
    message = refusal(cpg_script.main, fresh.target_flags("3"))
    assert str(fresh.paths.result_csv("digits")) in message and "find_backbone.sh" in message
    message = refusal(cpg_script.main, fresh.target_flags("3", "--backbone", "1"))
    assert str(fresh.paths.pruned("digits", "zero_one")) in message and "wo_backbone.sh" in message
    message = refusal(
        packnet_script.main, fresh.flags("--dataset", "1", "--mode", "inference", "--load_folder", tmp_path)
    )
    assert str(tmp_path) in message and "--load_folder" in message


# Shared files.


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "not found"),
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"two_three": "0.9"}', "has no entry for task four_five"),
        ('{"four_five": "high"}', "is not a number from 0 to 1 ('high')"),
        ('{"four_five": null}', "is not a number from 0 to 1 (None)"),
    ],
)
def test_a_baseline_file_without_the_tasks_accuracy_is_refused(
    content: str | None, named: str, fleet: Fleet
) -> None:
    path = fleet.paths.baseline_file("digits")
    path.unlink() if content is None else path.write_text(content)
    before = snapshot(fleet.root)
    for script, argv in ((cpg_script, fleet.target_flags("3")), (select_script, fleet.select_flags("3"))):
        message = refusal(script.main, argv)
        assert str(path) in message and named in message and "baseline.sh" in message
    assert snapshot(fleet.root) == before


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"0.0": 0.9, "0.5": 0.9}, "lacks the sparsity 0.8"),
        ({"0.5": 0.9, "0.8": 0.9}, "lacks the sparsity 0.0"),
        ({"0.0": 0.9, "0.5": "good", "0.8": 0.9}, "not a number"),
        ({"0.0": 0.9, "0.5": None, "0.8": 0.9}, "not a number"),
    ],
)
def test_a_record_without_a_ratios_accuracy_is_refused(record: dict, named: str, fleet: Fleet) -> None:
    path = fleet.paths.pruned("digits", "zero_one") / "record.txt"
    path.write_text(json.dumps(record))
    before = snapshot(fleet.root)
    message = refusal(select_script.main, fleet.select_flags("1", "--overwrite"))
    assert str(path) in message and named in message and "wo_backbone.sh" in message
    assert snapshot(fleet.root) == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("target_id,task_id\n3,9\n", "no task '9': choose from 1 zero_one"),
        ("target_id,task_id\n3,fish\n", "no task 'fish': choose from 1 zero_one"),
        ("target_id,task_id\n3,3\n", "pairs task four_five with itself"),
        ("target_id,task_id\n2,1\n", "has no row for target 3 (four_five)"),
        ("target_id\n3\n", "has no column task_id"),
        ("target_id,task_id\n3\n", "too few fields"),
        ("", "has no column"),
        ("\xff\xfe", "is not valid CSV"),
    ],
)
def test_a_result_csv_without_a_valid_pair_is_refused(content: str, named: str, fleet: Fleet) -> None:
    path = fleet.paths.result_csv("digits")
    path.write_bytes(content.encode("latin-1"))
    before = snapshot(fleet.root)
    message = refusal(cpg_script.main, fleet.target_flags("3"))
    assert str(path) in message and named in message
    assert snapshot(fleet.root) == before
    given = path.rename(path.with_name("mine.csv"))
    assert str(given) in refusal(cpg_script.main, fleet.target_flags("3", "--csv_path", given))


def test_a_search_does_not_touch_a_result_file_that_it_cannot_read(fleet: Fleet) -> None:
    path = fleet.paths.result_csv("digits")
    path.write_text("something else\n")
    for flags in ((), ("--overwrite",)):
        message = refusal(search_script.main, fleet.search_flags("2", *flags))
        assert str(path) in message and "delete it to start a new one" in message
    assert path.read_text() == "something else\n"


def test_missing_widths_name_the_stage(fleet: Fleet) -> None:
    (fleet.target_folder() / "widths.json").unlink()
    argv = fleet.baseline_flags("3", "--network_width_multiplier", "from_target")
    message = refusal(packnet_script.main, argv)
    assert "widths.json" in message and "w_backbone.sh" in message


def test_a_nan_loss_ends_the_run(fresh: Fleet) -> None:
    message = refusal(packnet_script.main, fresh.baseline_flags("1", "--lr", "1e20"))
    assert "zero_one" in message and "lower --lr" in message
    assert not list(fresh.checkpoints.rglob("checkpoint-*"))


def test_a_last_step_that_breaks_the_network_ends_the_run(fresh: Fleet) -> None:
    """The loss of the only step is finite; the weights after it are not."""
    one_step = ("--epochs", "1", "--batch_size", "100000", "--lr", "1e20")
    message = refusal(packnet_script.main, fresh.baseline_flags("1", *one_step))
    assert message == "error: zero_one, baseline: val_loss is nan in epoch 1: lower --lr"
    assert not list(fresh.checkpoints.rglob("*.pth.tar"))


def test_diverged_pruning_names_prune_lr_and_can_be_repeated_with_a_lower_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fleet.pruned_checkpoint("zero_one", 0.5).parent
    (folder / "checkpoint-3.pth.tar").unlink()
    begin, after = OwnedTraining.after_backward, []

    def break_in_the_second_epoch(self: OwnedTraining) -> None:
        begin(self)
        after.append(self)
        if list(folder.glob("resume*")):
            self.shared.network.features[0].weight.grad.fill_(float("inf"))

    flags = ("--mode", "prune", "--target_sparsity", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(OwnedTraining, "after_backward", break_in_the_second_epoch)
        message = refusal(cpg_script.main, fleet.own_flags("1", *flags))
    assert "zero_one, prune 0.5: loss is nan in epoch 2: lower --prune_lr" in message
    cpg_script.main(fleet.own_flags("1", *flags, "--prune_lr", "0.0005"))
    assert load(folder / "checkpoint-3.pth.tar")["arguments"]["lr"] == 0.0005


# Files and disks.


def run_with_file_limit(script: str, argv: list[str], *, kilobytes: int) -> subprocess.CompletedProcess:
    """Run a script under a file size limit, beyond which writes fail as on a full disk."""
    limited = ["bash", "-c", 'ulimit -f "$0" && exec "$@"', str(kilobytes), *command(script, argv)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(limited, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("full", ["for the checkpoint", "for the log"])
def test_a_full_disk_ends_the_run_with_one_line_and_loses_nothing_finished(full: str, fleet: Fleet) -> None:
    path = fleet.baseline_checkpoint("zero_one")
    log = path.with_name("train.log")
    # The configuration and one epoch's lines exceed the space left for the log.
    kilobytes = 100 if full == "for the checkpoint" else log.stat().st_size // 1024 + 1
    before = snapshot(fleet.root)
    again = fleet.baseline_flags("1", "--overwrite", "--lr", "0.02")
    ended = run_with_file_limit("packnet_cifar100_main_normal.py", again, kilobytes=kilobytes)
    assert ended.returncode == 1
    (line,) = error_lines(ended.stderr)
    blamed = path.with_name("resume.pth.tar") if full == "for the checkpoint" else log
    assert line.startswith(f"error: {blamed}: File too large: ")
    assert "run the same command again" in line
    after = snapshot(fleet.root)
    if full == "for the checkpoint":
        assert after == before
    assert before.items() <= after.items()

    packnet_script.main(again)
    assert load(path)["arguments"]["lr"] == 0.02


@pytest.mark.parametrize("root", ["checkpoints_root", "logs_root", "data_root"])
def test_a_root_below_a_file_is_refused(root: str, fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = snapshot(fleet.root)
    message = refusal(packnet_script.main, fleet.baseline_flags("4", f"--{root}", tmp_path / "file" / "sub"))
    assert str(tmp_path / "file") in message and "choose another folder" in message
    if root != "logs_root":
        assert snapshot(fleet.root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(fresh: Fleet) -> None:
    fresh.checkpoints.mkdir(parents=True)
    fresh.checkpoints.chmod(0o555)
    message = refusal(packnet_script.main, fresh.baseline_flags("1"))
    assert str(fresh.checkpoints) in message and "make it readable and writable" in message


def test_a_program_ends_with_one_line_and_status_1(fresh: Fleet) -> None:
    ended = run_process("pickaback_perceiverIO.py", fresh.flags("--dataset", "fish"))
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = error_lines(ended.stderr)
    assert line.startswith("error: table digits has no task 'fish'")
