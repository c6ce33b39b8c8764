"""All stages across modalities, run as users run them, on a few synthetic images and texts."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import CPG_cifar100_main_normal as cpg_script
import CPG_MM_main_normal as mm_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import transfer_kv_perceiver_io as transfer_script
from data.text_encoders import HashEncoder
from methods.ownership import SharedNetwork
from pipeline import architectures
from tests.helpers import REPOSITORY, assert_same_checkpoint, load, refusal, same, snapshot
from tools import list_tasks, report
from tools import select_pruning_ratio as select_script
from training.outputs import Output
from utils.paths import Paths, kv_transfer_file

TABLE = """
[mixed]
root = "pictures"
text_root = "stories"
size = 4
"""
IMAGE_TASKS = {"pets": ("cat", "dog"), "shapes": ("ball", "cube", "rod")}
TEXT_TASKS = {"mail": ("love", "hate"), "news": ("war", "peace")}
SIZES = {
    "num_latents": 3,
    "latent_dim": 8,
    "depth": 1,
    "cross_dim_head": 4,
    "latent_heads": 2,
    "latent_dim_head": 3,
    "num_freq_bands": 2,
    "queries_dim": 4,
    "feature_width": 6,
}
PRUNING = ("--target_sparsity", "0.5")


@dataclass(frozen=True)
class Mixed:
    """A fleet of two image tasks (1 pets, 2 shapes) and two text tasks (3 mail, 4 news) under one root."""

    root: Path

    @property
    def paths(self) -> Paths:
        return Paths(
            checkpoints=self.root / "checkpoints",
            logs=self.root / "logs",
            data=self.root / "data",
            run="perceiver_io/seed1",
        )

    def files(self, task: str, *more: object, sizes: dict | None = None) -> list[str]:
        flags = ["--arch", "perceiver_io", "--dataset_config", str(self.root / "mixed.toml")]
        for name in ("data", "checkpoints", "logs"):
            flags += [f"--{name}_root", str(self.root / name)]
        for name, value in (SIZES if sizes is None else sizes).items():
            flags += [f"--{name}", str(value)]
        return [*flags, "--dataset", task, *map(str, more)]

    def flags(self, task: str, *more: object) -> list[str]:
        return self.files(task, "--device", "cpu", "--threads", 1, *more)

    def target_flags(self, task: str, *more: object) -> list[str]:
        return self.flags(
            task,
            *("--mode", "finetune", "--epochs", 1, "--backbone", "from_csv"),
            *("--max_allowed_network_width_multiplier", 1.5),
            *more,
        )

    def baseline(self, task: str, *more: object) -> None:
        packnet_script.main(self.flags(task, "--epochs", 1, *more))

    def own(self, task: str, *more: object) -> None:
        flags = ("--mode", "finetune", "prune", "--epochs", 1, "--prune_epochs", 1, *PRUNING)
        cpg_script.main(self.flags(task, *flags, *more))

    def select(self, task: str) -> None:
        select_script.main(self.files(task, *PRUNING, "--allow_acc_loss", 1))

    def search(self, task: str, *more: object) -> None:
        search_script.main(self.flags(task, *more))

    def transfer(self, task: str, *more: object) -> None:
        transfer_script.main(self.files(task, *more))

    def target(self, task: str, *more: object) -> None:
        mm_script.main(self.target_flags(task, *more))

    def chosen(self, task: str) -> Path:
        return self.paths.pruned("mixed", task) / "checkpoint-1.pth.tar"

    def pairs(self, among: str = "all") -> dict[str, str]:
        return {row["target_id"]: row["task_id"] for row in rows(self.paths.result_csv("mixed", among=among))}

    def network(self, path: Path) -> SharedNetwork:
        build = architectures.architecture(
            "perceiver_io", layers=architectures.SHARABLE, in_channels=3, size=4, sizes=SIZES
        )
        return SharedNetwork.from_payload(load(path), build=build, source=path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_samples(data: Path) -> None:
    generator = numpy.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for task, classes in IMAGE_TASKS.items():
            for name in classes:
                folder = data / "pictures" / split / task / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        for task, classes in TEXT_TASKS.items():
            for name in classes:
                folder = data / "stories" / split / task / name
                folder.mkdir(parents=True)
                for number in range(count):
                    (folder / f"{number}.txt").write_text(f"{name} " * (number + 1) + split)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """Stages 1 to 3-2 for all tasks; the text task mail has the image task pets as its backbone."""
    mixed = Mixed(tmp_path_factory.mktemp("mixed"))
    (mixed.root / "mixed.toml").write_text(TABLE)
    write_samples(mixed.root / "data")
    mixed.baseline("all")
    mixed.own("all")
    mixed.select("all")
    mixed.search("all")
    mixed.search("mail", "--backbone", "pets", "--overwrite")
    mixed.transfer("all")
    mixed.target("all")
    return mixed


@pytest.fixture
def mixed(trained: Mixed, tmp_path: Path) -> Mixed:
    """A copy, for tests that change it."""
    shutil.copytree(trained.root, tmp_path / "mixed")
    return Mixed(tmp_path / "mixed")


def test_the_baseline_file_holds_image_and_text_tasks(trained: Mixed) -> None:
    entries = json.loads(trained.paths.baseline_file("mixed").read_text())
    assert list(entries) == ["pets", "shapes", "mail", "news"]


# The search.


def test_candidates_of_both_modalities_are_compared_by_default(trained: Mixed) -> None:
    measured = {
        (row["target_id"], row["task_id"]): float(row["ddv_euc"])
        for row in rows(trained.paths.table_csv("mixed"))
    }
    assert len(measured) == 12
    for (target, candidate), distance in measured.items():
        assert distance == pytest.approx(measured[candidate, target], abs=2e-6)


@pytest.mark.parametrize(
    ("candidates", "among", "expected"),
    [
        ("same", "same", {"1": ["2"], "3": ["4"]}),
        ("other", "other", {"1": ["3", "4"], "3": ["1", "2"]}),
        ("other,2-3", "other", {"1": ["3"], "3": ["2"]}),
    ],
)
def test_candidates_restricted_by_modality_are_kept_in_separate_files(
    candidates: str, among: str, expected: dict, mixed: Mixed
) -> None:
    before = mixed.paths.result_csv("mixed").read_bytes()
    mixed.search("pets,mail", "--candidates", candidates)
    found: dict[str, list[str]] = {}
    for row in rows(mixed.paths.table_csv("mixed", among=among)):
        found.setdefault(row["target_id"], []).append(row["task_id"])
    assert found == expected
    assert all(chosen in expected[target] for target, chosen in mixed.pairs(among).items())
    assert mixed.paths.result_csv("mixed").read_bytes() == before


def test_rules_by_probes_or_labels_know_only_candidates_of_the_targets_modality(mixed: Mixed) -> None:
    for target, readable in (("pets", "2"), ("mail", "4")):
        mixed.search(target, "--select", "logme")
        assert mixed.pairs()[{"pets": "1", "mail": "3"}[target]] == readable
    for row in rows(mixed.paths.table_csv("mixed")):
        if row["target_id"] in ("1", "3"):
            same_modality = {row["target_id"], row["task_id"]} in ({"1", "2"}, {"3", "4"})
            assert [bool(row[name]) for name in ("cka", "logme", "room")] == [same_modality] * 2 + [True]
    flags = mixed.flags("pets", "--select", "leep", "--candidates", "other")
    message = refusal(search_script.main, flags)
    assert "--select leep needs candidates that read images, and target pets has none" in message


def test_a_race_across_modalities_is_among_those_that_read_the_target(
    mixed: Mixed, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Each target brings its own K/V projection along, as in stage 3-2."""
    mixed.search("mail", "--select", "race", "--race_epochs", 1, "--scores", "chosen")
    log = capsys.readouterr().err
    assert "2 candidates of target 3 do not read texts: they have no" in log
    assert mixed.pairs()["3"] == "4"
    raced = {
        row["task_id"]: row["race"] for row in rows(mixed.paths.table_csv("mixed")) if row["target_id"] == "3"
    }
    assert [task for task, accuracy in raced.items() if accuracy] == ["4"]

    training = ("--protocol", "heldout", "--run", mixed.paths.run, "--save_folder", tmp_path / "mail")
    mixed.transfer("mail", "--backbone", "news")
    mixed.target("mail", "--backbone", "news", *training, "--max_allowed_network_width_multiplier", 1)
    (row,) = rows(tmp_path / "mail" / "train.csv")
    accuracy, loss = float(row["val_accuracy"]), float(row["val_loss"])
    assert float(raced["4"]) == pytest.approx(accuracy, abs=1e-6)
    assert f"Race [4 => 3] accuracy {accuracy:.4f}, loss {loss:.4f} on" in log


def test_a_target_without_a_candidate_of_that_modality_is_refused(trained: Mixed) -> None:
    flags = trained.flags("pets", "--candidates", "same,1,3-4")
    assert "--candidates same,1,3-4 leaves none for target pets" in refusal(search_script.main, flags)


def test_tasks_that_have_a_candidate_are_listed(trained: Mixed, capsys: pytest.CaptureFixture) -> None:
    files = ["--dataset_config", str(trained.root / "mixed.toml"), "--data_root", str(trained.root / "data")]
    images, everything = ["pets", "shapes"], ["pets", "shapes", "mail"]
    for candidates, expected in (("same,1-3", images), ("other,3", images), ("all", everything)):
        list_tasks.main([*files, "--dataset", "1-3", "--candidates", candidates])
        assert capsys.readouterr().out.split() == expected


def test_keys_and_values_are_not_mutated(trained: Mixed) -> None:
    flags = trained.flags("pets", "--max_iterations", 5)
    assert "compared by keys and values, which are not mutated" in refusal(search_script.main, flags)


# The transfer.


def test_the_transfer_moves_the_targets_own_projection_and_leaves_the_source_alone(mixed: Mixed) -> None:
    source = mixed.chosen("pets")
    kept = source.read_bytes()
    transferred = kv_transfer_file(source, "mail")
    assert transferred == source.with_name("checkpoint-1_kv_transfer_mail.pth.tar")
    transferred.unlink()
    mixed.transfer("mail")
    assert source.read_bytes() == kept

    payload = load(transferred)
    own = load(mixed.paths.baselines("mixed") / "mail" / "checkpoint-1.pth.tar")["model_state_dict"]
    prefix = "features.inputs.text."
    expected = {name: value for name, value in own.items() if name.startswith(prefix)}
    assert set(payload["arrivals"]) == {"mail"}
    assert same(payload["arrivals"]["mail"], expected)
    assert same(payload["model_state_dict"], load(source)["model_state_dict"])
    assert same(payload["masks"], load(source)["masks"])


def test_a_finished_transfer_is_skipped_and_one_from_other_networks_refused(mixed: Mixed) -> None:
    before = snapshot(mixed.root / "checkpoints")
    mixed.transfer("all")
    assert snapshot(mixed.root / "checkpoints") == before
    mixed.baseline("mail", "--seed", 2, "--run", "perceiver_io/seed1", "--overwrite")
    message = refusal(transfer_script.main, mixed.files("mail"))
    assert "checkpoint-1_kv_transfer_mail.pth.tar was made with other arguments: projection" in message
    mixed.transfer("mail", "--overwrite")


def test_a_target_starts_from_its_own_projection_and_the_backbone_keeps_its_own(trained: Mixed) -> None:
    final = trained.paths.target("mixed", "pets", "mail") / "checkpoint-1.pth.tar"
    shared = trained.network(final)
    assert {record.name: record.modality for record in shared.tasks} == {"pets": "image", "mail": "text"}
    chosen = trained.network(trained.chosen("pets"))
    images = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(shared.as_task("pets")(images), chosen.as_task("pets")(images))


def test_without_the_transfer_the_result_is_stored_elsewhere_and_differs(mixed: Mixed) -> None:
    transferred = mixed.paths.target("mixed", "pets", "mail") / "checkpoint-1.pth.tar"
    kept = transferred.read_bytes()
    mixed.target("mail", "--no_kv_transfer")
    control = mixed.paths.target("mixed", "pets", "mail", kv_transfer=False) / "checkpoint-1.pth.tar"
    assert transferred.read_bytes() == kept
    own = mixed.paths.baselines("mixed") / "mail" / "checkpoint-1.pth.tar"
    started, moved, left = (
        load(path)["model_state_dict"]["features.inputs.text.kv.weight"]
        for path in (own, transferred, control)
    )
    assert (moved - started).norm() < (left - started).norm() / 3


def test_a_target_with_its_projection_is_not_trained_by_the_script_without_transfers(trained: Mixed) -> None:
    before = snapshot(trained.root)
    for flags in (), ("--save_folder", trained.root / "elsewhere"):
        message = refusal(cpg_script.main, trained.target_flags("mail", *flags))
        assert "--arch perceiver_io: its targets bring their own K/V projections" in message
        assert "w_backbone_MM.sh" in message
    assert snapshot(trained.root) == before


def test_networks_without_projections_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    roots = [flag for name in ("data", "checkpoints", "logs") for flag in (f"--{name}_root", str(tmp_path))]
    for main, flags in ((transfer_script.main, []), (mm_script.main, ["--backbone", "from_csv"])):
        message = refusal(main, [*roots, *flags, "--arch", "lenet5"])
        assert "--arch lenet5 has no K/V projections to transfer: use perceiver_io" in message


def test_multimodal_scripts_default_to_a_perceiver_and_a_table_of_both_modalities() -> None:
    for args in (mm_script.parse([]), transfer_script.parse([])):
        assert (args.arch, args.dataset_config) == ("perceiver_io", "digits_docs")


def test_no_kv_transfer_requires_a_backbone(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        mm_script.parse(["--no_kv_transfer"])
    assert "--no_kv_transfer requires --backbone" in capsys.readouterr().err


def test_a_target_on_a_redone_backbone_is_refused_until_the_transfer_is_redone(mixed: Mixed) -> None:
    path = mixed.chosen("pets")
    payload = load(path)
    payload["model_state_dict"]["features.readout.bias"] += 1
    torch.save(payload, path)
    message = refusal(mm_script.main, mixed.target_flags("mail"))
    assert "was made from another network than" in message and "transfer_kv.sh" in message


def test_a_target_whose_own_network_was_redone_is_refused_until_the_transfer_is_redone(mixed: Mixed) -> None:
    mixed.baseline("mail", "--seed", 2, "--run", "perceiver_io/seed1", "--overwrite")
    message = refusal(mm_script.main, mixed.target_flags("mail"))
    own = mixed.paths.baselines("mixed") / "mail" / "checkpoint-1.pth.tar"
    assert f"was made from another network than {own}" in message and "transfer_kv.sh" in message


def test_a_target_without_its_transfer_names_the_stage(mixed: Mixed) -> None:
    kv_transfer_file(mixed.chosen("pets"), "mail").unlink()
    message = refusal(mm_script.main, mixed.target_flags("mail"))
    assert "checkpoint-1_kv_transfer_mail.pth.tar not found: run run_pickaback/transfer_kv.sh" in message


def test_only_the_tasks_of_a_modality_are_run(mixed: Mixed, caplog: pytest.LogCaptureFixture) -> None:
    names = [*IMAGE_TASKS, *TEXT_TASKS]
    backbones = {names[int(target) - 1]: names[int(id) - 1] for target, id in mixed.pairs().items()}
    folders = {task: mixed.paths.target("mixed", backbone, task) for task, backbone in backbones.items()}
    for folder in folders.values():
        shutil.rmtree(folder)
    mixed.target("all", "--modality", "text")
    assert {task for task, folder in folders.items() if folder.exists()} == set(TEXT_TASKS)
    message = refusal(mm_script.main, mixed.target_flags("pets", "--modality", "text"))
    assert "--modality text leaves none of the tasks pets" in message


def test_a_target_killed_after_every_epoch_ends_with_the_same_bits(
    mixed: Mixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mixed.paths.target("mixed", "pets", "mail")
    shutil.rmtree(folder)
    killed = Mixed(shutil.copytree(mixed.root, tmp_path / "killed"))
    mixed.target("mail", "--epochs", 3)

    save, deaths = Output.save_unfinished, 0

    def dying(self: Output, *arguments: object) -> None:
        nonlocal deaths
        save(self, *arguments)
        deaths += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Output, "save_unfinished", dying)
    while not (result := killed.paths.target("mixed", "pets", "mail") / "checkpoint-3.pth.tar").exists():
        with contextlib.suppress(KeyboardInterrupt):
            killed.target("mail", "--epochs", 3)
    assert deaths in (2, 4)
    assert_same_checkpoint(result, folder / "checkpoint-3.pth.tar")


# Bad input.


@pytest.mark.parametrize("script", ["transfer", "target"])
@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("3,3", "pairs task mail with itself"),
        ("3,9", "table mixed has no task '9'"),
        ("4,1", "has no row for target 3 (mail)"),
    ],
)
def test_a_result_csv_without_a_valid_pair_is_refused(
    script: str, row: str, named: str, trained: Mixed, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"target_id,task_id\n{row}\n")
    main, flags = {
        "transfer": (transfer_script.main, trained.files),
        "target": (mm_script.main, trained.target_flags),
    }[script]
    message = refusal(main, flags("mail", "--csv_path", pairs))
    assert str(pairs) in message and named in message


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"latent_dim": 10}, "latent_dim (8 recorded, 10 requested)"),
        (
            {"depth": 2, "num_latents": 5},
            "num_latents (3 recorded, 5 requested), depth (1 recorded, 2 requested)",
        ),
    ],
)
def test_checkpoints_of_another_size_or_depth_are_refused_by_the_sizes(
    sizes: dict, named: str, trained: Mixed
) -> None:
    main: Callable
    for main, flags in (
        (transfer_script.main, []),
        (search_script.main, ["--device", "cpu", "--candidates", "1-2"]),
        (mm_script.main, ["--device", "cpu", "--backbone", "pets", "--mode", "finetune"]),
    ):
        message = refusal(main, trained.files("mail", *flags, sizes=SIZES | sizes))
        assert named in message and ".pth.tar" in message


def test_gradients_are_clipped_as_logged_and_a_finished_run_with_another_norm_is_refused(
    mixed: Mixed,
) -> None:
    folder = mixed.paths.baselines("mixed") / "pets"
    assert json.loads((folder / "config.json").read_text())["recipe"]["clip_grad_norm"] == 1.0
    message = refusal(packnet_script.main, mixed.flags("pets", "--epochs", 1, "--clip_grad_norm", 0))
    assert "clip_grad_norm (1.0 recorded, none requested)" in message
    before = load(folder / "checkpoint-1.pth.tar")["model_state_dict"]
    mixed.baseline("pets", "--clip_grad_norm", 1e-3, "--overwrite")
    after = load(folder / "checkpoint-1.pth.tar")["model_state_dict"]
    assert not same(before, after)


@pytest.mark.parametrize("stage", ["search", "transfer", "target", "inference"])
def test_texts_from_another_encoder_than_the_networks_are_refused_by_name(
    stage: str, mixed: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mixed.paths.logs)
    main, flags = {
        "search": (search_script.main, mixed.flags("mail")),
        "transfer": (transfer_script.main, mixed.files("mail", "--backbone", "pets", "--overwrite")),
        "target": (mm_script.main, mixed.target_flags("mail", "--backbone", "pets", "--overwrite")),
        "inference": (cpg_script.main, mixed.flags("mail", "--mode", "inference")),
    }[stage]
    monkeypatch.setattr(HashEncoder, "identity", "hash 2")
    message = refusal(main, flags)
    assert "mail was learned with the text encoder hash 1, not hash 2: give the same" in message
    assert ".pth.tar" in message


def test_missing_outputs_of_earlier_stages_name_the_stage(mixed: Mixed) -> None:
    shutil.rmtree(mixed.paths.baselines("mixed") / "mail")
    assert "run_pickaback/baseline.sh" in refusal(transfer_script.main, mixed.files("mail"))
    shutil.rmtree(mixed.paths.pruned("mixed", "pets"))
    assert "select_pruning_ratio_of_backbone.sh" in refusal(transfer_script.main, mixed.files("mail"))


# The table.


def test_the_report_separates_modalities_and_choices(mixed: Mixed, capsys: pytest.CaptureFixture) -> None:
    for among in ("same", "other"):
        mixed.search("all", "--candidates", among)
        mixed.transfer("all", "--candidates", among)
        mixed.target("all", "--candidates", among)
    mixed.target("mail", "--candidates", "other", "--no_kv_transfer")
    report.main(mixed.files("all"))
    table = {row["task"]: row for row in rows(mixed.paths.report_file("mixed"))}
    assert "its modality" in capsys.readouterr().out
    mail = table["mail"]
    assert (mail["modality"], mail["backbone"], mail["its modality"]) == ("text", "pets", "image")
    assert mail["best of same"] == "news" and mail["best of other"] in IMAGE_TASKS
    folder = mixed.paths.target("mixed", mail["best of other"], "mail", kv_transfer=False)
    widths = json.loads((folder / "widths.json").read_text())
    assert float(mail["untransferred"]) == widths[max(widths)]["test_accuracy"]
    assert table["news"]["untransferred"] == ""
    for task in (
        "pets",
        "shapes",
        "news",
    ):  # chosen by the rule, unlike mail: a pick is the best of its modality
        row = table[task]
        among = "same" if row["modality"] == row["its modality"] else "other"
        assert (row["backbone"], row["after transfer"]) == (row[f"best of {among}"], row[among])

    report.main(mixed.files("all", "--candidates", "same"))
    picked = {row["task"]: row["backbone"] for row in rows(mixed.paths.report_file("mixed"))}
    assert picked == {"pets": "shapes", "shapes": "pets", "mail": "news", "news": "mail"}


def test_the_bash_stages_take_a_pair_through_transfer_and_training(mixed: Mixed) -> None:
    shutil.rmtree(mixed.paths.target("mixed", "pets", "mail"))
    kv_transfer_file(mixed.chosen("pets"), "mail").unlink()
    variables = {
        **{f"{name.upper()}_ROOT": str(mixed.root / name) for name in ("data", "checkpoints", "logs")},
        **{"PYTHON": sys.executable, "EPOCHS": "1", "MAX_WIDTH": "1.0", "DEVICE": "cpu", "JOBS": "1"},
        "SIZE": " ".join(f"--{name} {value}" for name, value in SIZES.items()),
    }
    for stage in ("transfer_kv.sh", "w_backbone_MM.sh"):
        arguments = [mixed.root / "mixed.toml", "--backbone", "1", "--target", "3"]
        result = subprocess.run(
            ["bash", REPOSITORY / "run_pickaback" / stage, *arguments],
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert (mixed.paths.target("mixed", "pets", "mail") / "checkpoint-1.pth.tar").exists()
