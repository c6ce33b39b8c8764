"""Names of the files that stages exchange, as documented."""

from pathlib import Path

import pytest

from pipeline import flags, fleet
from utils.errors import UserError
from utils.paths import (
    REPOSITORY,
    Paths,
    checkpoint_in,
    checkpoint_name,
    checkpoints_in,
    record_file,
    sparsity_folder,
    width_folder,
    widths_file,
)

PATHS = Paths(checkpoints=Path("checkpoints"), logs=Path("logs"), data=Path("data"), run="lenet5/seed2")


def test_files_follow_the_published_layout() -> None:
    pruned = PATHS.pruned("cifar100", "fish")
    target = PATHS.target("cifar100", "fish", "trees")
    found = {
        PATHS.baseline_file("cifar100"),
        PATHS.result_csv("cifar100"),
        PATHS.table_csv("cifar100"),
        PATHS.baselines("cifar100") / "fish" / checkpoint_name(100),
        PATHS.single_scratch("cifar100", "fish") / checkpoint_name(100),
        sparsity_folder(pruned, 0.95) / checkpoint_name(20),
        pruned / checkpoint_name(20),
        record_file(pruned),
        target / checkpoint_name(100),
        widths_file(target),
    }
    own = "checkpoints/lenet5/seed2/CPG_single_scratch_woexp/cifar100/fish"
    on = "checkpoints/lenet5/seed2/CPG_fromsingle_scratch_woexp_target/cifar100/fish/trees/scratch"
    assert {str(path) for path in found} == {
        "logs/lenet5/seed2/baseline_cifar100_acc_scratch.txt",
        "logs/lenet5/seed2/pickaback_cifar100_result.csv",
        "logs/lenet5/seed2/pickaback_cifar100_table.csv",
        "checkpoints/lenet5/seed2/baseline_scratch/cifar100/fish/checkpoint-100.pth.tar",
        f"{own}/scratch/checkpoint-100.pth.tar",
        f"{own}/gradual_prune/0.95/checkpoint-20.pth.tar",
        f"{own}/gradual_prune/checkpoint-20.pth.tar",
        f"{own}/gradual_prune/record.txt",
        f"{on}/checkpoint-100.pth.tar",
        f"{on}/widths.json",
    }


def test_no_two_outputs_share_a_folder() -> None:
    target = PATHS.target("cifar100", "fish", "trees")
    folders = [
        PATHS.baselines("cifar100") / "fish",
        PATHS.baselines("cifar100") / "trees",
        PATHS.baselines("cifar100", width_multiplier=2.0) / "fish",
        PATHS.baselines("digits") / "fish",
        PATHS.control("cifar100", "fish", width_multiplier=1.5),
        PATHS.control("cifar100", "fish", width_multiplier=2.0),
        PATHS.single_scratch("cifar100", "fish"),
        PATHS.pruned("cifar100", "fish"),
        sparsity_folder(PATHS.pruned("cifar100", "fish"), 0.1),
        target,
        PATHS.target("cifar100", "trees", "fish"),
        PATHS.reused("cifar100", "trees", "fish", how="copy"),
        PATHS.reused("cifar100", "trees", "fish", how="probe"),
        width_folder(target, 1.0),
        width_folder(target, 1.5),
    ]
    assert len(set(folders)) == len(folders)
    wide = PATHS.baseline_file("cifar100", width_multiplier=2.0)
    assert wide != PATHS.baseline_file("cifar100") == PATHS.baseline_file("cifar100", width_multiplier=1.0)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"seed": 1, "protocol": "published"}, "lenet5/seed1"),
        ({"seed": 2, "protocol": "heldout"}, "lenet5/seed2-heldout"),
        ({"seed": 1, "protocol": "published", "train_per_class": 50}, "lenet5/seed1-n50"),
        ({"seed": 1, "protocol": "heldout", "train_per_class": 50}, "lenet5/seed1-n50-heldout"),
        ({"seed": 1, "protocol": "published", "train_per_class": 0}, "lenet5/seed1-nall"),
    ],
)
def test_a_run_is_named_after_architecture_seed_samples_and_protocol(how: dict, name: str) -> None:
    assert Paths.run_name(arch="lenet5", **how) == name


@pytest.mark.parametrize(
    ("arch", "name"),
    [("alexnet", "spg/cifar100_10/ewc/seed3"), ("resnet18", "spg/cifar100_10/ewc-resnet18/seed3")],
)
def test_a_sequence_run_is_named_after_sequence_approach_architecture_and_seed(arch: str, name: str) -> None:
    assert Paths.continual_run_name(sequence="cifar100_10", approach="ewc", seed=3, arch=arch) == name


def test_the_checkpoint_is_the_one_with_the_highest_epoch_and_other_files_are_ignored(tmp_path: Path) -> None:
    others = (
        "resume.pth.tar",
        ".checkpoint-300.pth.tar.x.tmp",
        "checkpoint-x.pth.tar",
        "checkpoint-9.pth.tar.old",
    )
    for name in ("checkpoint-20.pth.tar", "checkpoint-100.pth.tar", *others):
        (tmp_path / name).touch()
    assert sorted(checkpoints_in(tmp_path)) == [20, 100]
    assert checkpoint_in(tmp_path, remedy="").name == "checkpoint-100.pth.tar"


def test_a_folder_without_a_checkpoint_is_reported_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage first") as caught:
        checkpoint_in(tmp_path / "absent", remedy="run the stage first")
    assert str(tmp_path / "absent") in str(caught.value)


def test_roots_come_from_flags_then_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roots(*argv: str) -> Paths:
        parser = flags.parser("")
        flags.add_common(parser)
        return fleet.paths_of(parser.parse_args(argv))

    for name in ("DATA_ROOT", "CHECKPOINTS_ROOT", "LOGS_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert (roots().logs, roots().checkpoints) == (REPOSITORY / "logs", REPOSITORY / "checkpoints")
    monkeypatch.setenv("LOGS_ROOT", str(tmp_path))
    assert (roots().logs, roots().data) == (tmp_path, REPOSITORY / "data")
    assert roots("--logs_root", "elsewhere").logs == Path("elsewhere")
    assert roots("--run", "mine", "--seed", "3").run == "mine"
    assert roots("--seed", "3", "--protocol", "heldout").run == "lenet5/seed3-heldout"
