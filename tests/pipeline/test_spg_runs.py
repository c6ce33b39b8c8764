"""spg_main.py on digits_5: end to end, resumed and refused; and its learning-rate schedule."""

import contextlib
import csv
import json
import logging
import pkgutil
import re

import pytest
import torch

import spg_main
from methods.approaches import APPROACHES
from pipeline import train_task
from pipeline.spg import ContinualRun
from training.outputs import Output
from utils.errors import UserError

QUICK = ("--epochs", "2", "--lr", "0.1", "--threads", "1", "--device", "cpu")


class Roots:
    def __init__(self, folder, data):
        self.folder = folder
        self.flags = [
            *("--logs_root", str(folder / "logs"), "--checkpoints_root", str(folder / "checkpoints")),
            *("--data_root", str(data)),
        ]

    def run(self, *flags):
        spg_main.main([*QUICK, *self.flags, *flags])

    def logs(self, approach="spg", seed=1):
        return self.folder / "logs" / "spg" / "digits_5" / approach / f"seed{seed}"

    def newest(self, approach="spg", seed=1):
        """The last task's checkpoint."""
        folder = self.folder / "checkpoints" / "spg" / "digits_5" / approach / f"seed{seed}"
        (path,) = folder.glob("*/train/checkpoint-*.pth.tar")
        return torch.load(path, weights_only=True)

    def metrics(self, approach="spg", seed=1):
        return json.loads((self.logs(approach, seed) / "metrics.json").read_text())


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def roots(tmp_path, data_root):
    return Roots(tmp_path, data_root)


def flat(value, name=""):
    """Tensors and numbers of a nested payload, by name, without times."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("seconds",):
                yield from flat(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{name}.{index}")
    else:
        yield name, value


def assert_same(one, other):
    one, other = dict(flat(one)), dict(flat(other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = value.equal(other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


# End to end


def test_spg_learns_digits(roots, capsys):
    """With a short schedule; also checks the published spelling and the logs."""
    roots.run("appr=spg", "seq=digits_5", "epochs=25")
    metrics = roots.metrics()
    assert metrics["average_accuracy"] > 0.75
    assert metrics["backward_transfer"] > -0.2
    rows = list(csv.DictReader((roots.logs() / "accuracy_matrix.csv").open()))
    assert [row["after"] for row in rows] == [f"task_{number}" for number in range(1, 6)]
    for number, row in enumerate(rows, start=1):
        known = [row[f"task_{task}"] for task in range(1, 6) if row[f"task_{task}"]]
        assert len(known) == number
        assert [float(value) for value in known] == pytest.approx(
            metrics["accuracy_matrix"][number - 1], abs=1e-6
        )
    configuration = json.loads((roots.logs() / "config.json").read_text())
    assert configuration["epochs"] == 25 and configuration["dropout"] == [0.2, 0.3]
    log = (roots.logs() / "train.log").read_text()
    assert "In train()-> Train Ep. #1 loss: " in log and "In validate()-> Val Ep. #1 loss: " in log
    assert "spg digits_5 seed 1" in capsys.readouterr().out


@pytest.mark.parametrize("approach", APPROACHES)
def test_every_approach_runs_and_is_then_skipped(roots, approach, capsys):
    roots.run("--appr", approach)
    first = roots.metrics(approach)
    assert len(first["accuracy_matrix"][-1]) == 5
    assert all(0 <= value <= 1 for row in first["accuracy_matrix"] for value in row)
    before = roots.newest(approach)
    roots.run("--appr", approach)
    assert roots.metrics(approach) == first
    assert_same(before, roots.newest(approach))
    assert f"{approach} digits_5 seed 1" in capsys.readouterr().out


def test_one_is_the_reference_for_forward_transfer(roots):
    roots.run("--appr", "one")
    roots.run("--appr", "ncl")
    one, ncl = roots.metrics("one"), roots.metrics("ncl")
    alone = [row[-1] for row in one["accuracy_matrix"]]
    learned = [row[-1] for row in ncl["accuracy_matrix"]]
    assert one["forward_transfer"] is None and one["backward_transfer"] == 0
    assert ncl["forward_transfer"] == pytest.approx(sum(learned) / 5 - sum(alone) / 5)
    # A run with other arguments does not count as the reference.
    roots.run("--appr", "ncl", "--overwrite", "--lr", "0.2")
    assert roots.metrics("ncl")["forward_transfer"] is None


def test_trials_report_mean_and_deviation(roots, capsys):
    roots.run("--appr", "ncl", "--trials", "2", "--epochs", "1")
    assert roots.metrics("ncl", 1)["arguments"]["seed"] == 1
    assert roots.metrics("ncl", 2)["arguments"]["seed"] == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("mean ± deviation") and "±" in last.removeprefix("mean ±")
    # The same runs, by the pattern of their names.
    roots.run(
        *("--appr", "ncl", "--seeds", "2", "1", "--epochs", "1", "--run", "spg/digits_5/ncl/seed{seed}")
    )
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_packnet_does_not_forget(roots):
    roots.run("--appr", "packnet", "--epochs", "3")
    matrix = roots.metrics("packnet")["accuracy_matrix"]
    assert all(row[task] == matrix[task][task] for row in matrix for task in range(len(row)))


# Resuming


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("approach", "after"),
    [
        *(("spg", 1), ("spg", 3), ("ncl", 3), ("ewc", 3), ("packnet", 4), ("one", 4), ("mtl", 2)),
        *(("er", 5), ("lwf", 5)),
    ],
)
def test_resumed_mid_task_is_bit_identical(tmp_path, data_root, monkeypatch, approach, after):
    """Killed right after the `after`-th save."""
    flags = ("--appr", approach, "--epochs", "3")
    whole, broken = Roots(tmp_path / "whole", data_root), Roots(tmp_path / "broken", data_root)
    whole.run(*flags)

    save, saved = Output.save_unfinished, []

    def save_and_die(self, payload, progress):
        save(self, payload, progress)
        saved.append(self.folder)
        if len(saved) == after:
            raise Killed

    monkeypatch.setattr(Output, "save_unfinished", save_and_die)
    monkeypatch.setattr(train_task, "SAVING_SHARE", 1e9)  # after every epoch
    with pytest.raises(Killed):
        broken.run(*flags)
    broken.run(*flags)
    assert_same(whole.newest(approach), broken.newest(approach))
    assert_same({**whole.metrics(approach), "tasks": None}, {**broken.metrics(approach), "tasks": None})
    matrices = [(roots.logs(approach) / "accuracy_matrix.csv").read_bytes() for roots in (whole, broken)]
    assert matrices[0] == matrices[1]


def test_killed_in_the_importance_pass(tmp_path, data_root, monkeypatch):
    whole, broken = Roots(tmp_path / "whole", data_root), Roots(tmp_path / "broken", data_root)
    whole.run()

    def die(**arguments):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("methods.approaches.spg.task_importance", die)
        broken.run()
    broken.run()
    assert_same(whole.newest(), broken.newest())


# Refusals


def test_unknown_names_list_the_known_ones(roots):
    with pytest.raises(UserError, match="unknown approach 'hat': choose from spg, ncl"):
        roots.run("--appr", "hat")
    with pytest.raises(UserError, match="unknown sequence 'mnist': choose from digits_5, cifar100_10"):
        roots.run("--seq", "mnist")


def test_other_arguments_are_refused_by_name(roots):
    roots.run("--appr", "ncl", "--epochs", "1")
    with pytest.raises(UserError, match=r"lr \(0.1 recorded, 0.2 requested\)"):
        roots.run("--appr", "ncl", "--epochs", "1", "--lr", "0.2")
    roots.run("--appr", "ncl", "--epochs", "1", "--lr", "0.2", "--overwrite")
    assert roots.metrics("ncl")["arguments"]["lr"] == 0.2


def test_tuning_without_optuna_says_how_to_get_it(roots):
    with contextlib.suppress(ImportError):
        import optuna  # noqa: F401

        pytest.skip("Optuna is installed")
    with pytest.raises(UserError, match="needs Optuna: install it"):
        roots.run("--tune")


def test_tuning_continues_where_it_was_stopped(roots, caplog, monkeypatch):
    pytest.importorskip("optuna")
    caplog.set_level(logging.INFO)
    flags = ("--appr", "ncl", "--epochs", "1", "--tune", "--tune_trials")
    fit_once, trained = train_task.fit, []

    def counted(**arguments):
        trained.append(arguments)
        return fit_once(**arguments)

    monkeypatch.setattr(train_task, "fit", counted)
    roots.run(*flags, "1")
    assert len(trained) == 5
    roots.run(*flags, "2")
    tried = sorted(path.name for path in (roots.logs("ncl") / "tune").iterdir())
    assert len(tried) == 2 and len(trained) == 10, "finished runs are not repeated"
    chosen = re.search(r"We choose --dropout (\S+) (\S+) \(validation accuracy", caplog.messages[-1])
    assert "-".join(chosen.groups()) in tried
    with (roots.logs("ncl") / "tune.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["conv"], rows[0]["rest"]) == chosen.groups()
    for row in rows:
        metrics = json.loads(
            (roots.logs("ncl") / f"tune/{row['conv']}-{row['rest']}/metrics.json").read_text()
        )
        assert float(row["accuracy"]) == metrics["average_accuracy"] <= float(rows[0]["accuracy"])
        assert metrics["accuracies_of"] == "validation"


def test_validation_accuracies_are_not_compared_with_test_accuracies(roots):
    roots.run("--appr", "one", "--epochs", "1")
    args = spg_main.parse([*QUICK, *roots.flags, "--appr", "ncl", "--epochs", "1"])
    metrics = ContinualRun(args, seed=1, decide_on="validation").run()
    assert metrics["forward_transfer"] is None and metrics["accuracies_of"] == "validation"


def test_memory_does_not_grow_with_the_images_of_learned_tasks(roots):
    run = ContinualRun(spg_main.parse([*QUICK, *roots.flags, "--appr", "ncl", "--epochs", "1"]), seed=1)
    run.run()
    held = [run.data(number) for number in range(1, 6)]
    assert [len(data.train) + len(data.validation) for data in held[:-1]] == [0, 0, 0, 0]
    assert all(data.train.inputs.untyped_storage().nbytes() == 0 for data in held[:-1])
    assert all(len(data.test) for data in held) and len(held[-1].train)


def test_wrong_usage_ends_with_status_2(roots):
    unknown = (["appr.lamb=3"], ["lambda=3"], ["--dropout", "0.3"])
    conflicting = (
        ["--trials", "2", "--run", "x"],
        ["--seeds", "1", "2", "--run", "x"],
        ["--seeds", "1", "2", "--trials", "2"],
        ["--seeds", "1", "1"],
        ["--tune", "--seeds", "1", "2"],
        ["--tune", "--trials", "2"],
        ["--tune", "--dropout", ".3", ".3"],
    )
    for flags in (*unknown, *conflicting):
        with pytest.raises(SystemExit) as ended:
            roots.run(*flags)
        assert ended.value.code == 2


# The cost of a task


@pytest.mark.parametrize(
    ("approach", "pass_after"),
    [
        ("ewc", "methods.approaches.ewc.Consolidation.fisher_information"),
        ("spg", "methods.approaches.spg.task_importance"),
    ],
)
def test_the_pass_after_a_task_counts_towards_its_seconds(roots, monkeypatch, approach, pass_after):
    """Measured with a clock that only advances during that pass."""
    now = 0.0
    monkeypatch.setattr("pipeline.spg.synchronised_clock", lambda device: lambda: now)
    module, _, name = pass_after.rpartition(".")
    owner = pkgutil.resolve_name(module)
    original = getattr(owner, name)

    def slow(*arguments, **more):
        nonlocal now
        now += 7.0
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, slow)
    roots.run("--appr", approach)
    assert [task["seconds"] for task in roots.metrics(approach)["tasks"]] == [7.0] * 5


def test_a_run_whose_loss_is_never_finite_is_refused(roots):
    with pytest.raises(UserError, match="the loss was not finite in any epoch: lower --lr"):
        roots.run("--appr", "ncl", "--lr", "1e30", "--lr_floor", "1e29", "--epochs", "3")


# What --run and --overwrite may delete


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["/absolute", "../../v", ".", "..", "a/../b", "a//b", "a/", "-x", ".hidden", "a\n", ""]
)
def test_run_names_that_could_leave_the_roots_are_usage_errors(roots, name):
    with pytest.raises(SystemExit) as ended:
        roots.run("--run", name, "--overwrite")
    assert ended.value.code == 2
    assert not (roots.folder / "checkpoints").exists()


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_folders_of_others_under_the_same_name_stay(roots, flags):
    """Whatever stands in a run's folder: only this run's own checkpoints are ever deleted."""
    run = roots.folder / "checkpoints" / "lenet5"
    for path in ("seed1/baseline/fish/checkpoint-100.pth.tar", "task_1/notes.txt", "task_1/train/mine.txt"):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text("finished work")
    before = everything(run)
    roots.run("--run", "lenet5", "--appr", "ncl", *flags)
    assert before.items() <= everything(run).items()


def test_another_approach_under_the_same_name_is_not_deleted(roots):
    roots.run("--run", "mine", "--appr", "ncl")
    before = everything(roots.folder / "checkpoints")
    with pytest.raises(UserError, match="belongs to another run: choose another --run"):
        roots.run("--run", "mine", "--appr", "ewc", "--overwrite")
    assert everything(roots.folder / "checkpoints") == before


def test_overwriting_keeps_what_tuning_has_tried(roots):
    tried = roots.folder / "checkpoints" / "spg" / "digits_5" / "ncl" / "seed1" / "tune" / "0.1-0.2" / "x"
    tried.mkdir(parents=True)
    (tried / "checkpoint-2.pth.tar").write_text("tried")
    roots.run("--appr", "ncl")
    roots.run("--appr", "ncl", "--overwrite", "--keep_checkpoints")
    assert (tried / "checkpoint-2.pth.tar").read_text() == "tried"
