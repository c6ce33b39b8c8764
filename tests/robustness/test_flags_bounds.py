"""Every number that a flag or a variable of the stages takes has bounds."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import CPG_cifar100_main_normal as cpg_script
import CPG_MM_main_normal as multimodal_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import spg_main as spg_script
import transfer_kv_perceiver_io as transfer_script
from pipeline import flags
from tests.helpers import refusal
from tests.run_pickaback.test_stages_bash import Bash
from tools import list_tasks, report, select_pruning_ratio, verify_pairs, watch
from utils import errors

SCRIPTS = [
    *(packnet_script, cpg_script, multimodal_script, search_script, transfer_script, spg_script),
    *(list_tasks, report, select_pruning_ratio, verify_pairs, watch),
]
PATHOLOGICAL = ["nan", "inf", "-inf", "1e309", "1e308", "9" * 5000, "-" + "9" * 30, "0x10", "", "١e999"]


@pytest.fixture(autouse=True)
def _memory_of_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def remember(self: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
        _PARSERS.append(self)
        return parse(self, *arguments)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", remember)


_PARSERS: list[argparse.ArgumentParser] = []


def refused(main: Callable, argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """A usage error's last line."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def numeric_flags(script: object, capsys: pytest.CaptureFixture) -> list[argparse.Action]:
    with pytest.raises(SystemExit):
        script.main(["--help"])
    capsys.readouterr()
    return [
        action
        for action in _PARSERS[-1]._actions
        if isinstance(action.default, int | float) and not isinstance(action.default, bool)
        if action.nargs != 0
    ] + [action for action in _PARSERS[-1]._actions if isinstance(action.type, flags.Whole | flags.Real)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_number_is_bounded_and_refused_by_its_name(
    script: object, capsys: pytest.CaptureFixture
) -> None:
    found = numeric_flags(script, capsys)
    assert found
    for action in found:
        assert action.type is flags.width_multiplier or isinstance(action.type, flags.Whole | flags.Real)
        for text in PATHOLOGICAL:
            count = action.nargs if isinstance(action.nargs, int) else 1
            flag = action.option_strings[0]
            line = refused(script.main, [f"{flag}={text}"] if count == 1 else [flag, text, "0.1"], capsys)
            if not text.startswith("-"):
                assert f"argument {'/'.join(action.option_strings)}: must be " in line
            assert len(line) < 200 and "<" not in line


@pytest.mark.parametrize(
    ("script", "flag", "accepted", "rejected"),
    [
        (packnet_script, "threads", "1024", "1000000"),
        (packnet_script, "batch_size", "1000000", "1000001"),
        (packnet_script, "epochs", "1000000", "0"),
        (packnet_script, "weight_decay", "0", "1e308"),
        (packnet_script, "lr", "1e-20", "0"),
        (packnet_script, "seed", str(2**63 - 1), str(2**63)),
        (packnet_script, "network_width_multiplier", "100", "100.5"),
        (packnet_script, "network_width_multiplier", "from_target", "from"),
        (packnet_script, "num_classes", "-1", "-2"),
        (packnet_script, "latent_dim", "65536", "65537"),
        (packnet_script, "depth", "1024", "65536"),
        (packnet_script, "max_freq", "10.5", "0"),
        (cpg_script, "target_sparsity", "0.9999999", "0.99999999"),
        (cpg_script, "prune_epochs", "1", "1e2"),
        (cpg_script, "allow_acc_loss", "1", "1.01"),
        (search_script, "max_iterations", "0", "-1"),
        (spg_script, "tune_trials", "10000", "10001"),
        (packnet_script, "logfile", "mine.log", "checkpoint-4.pth.tar"),
        (packnet_script, "logfile", "mine.txt", "record.txt"),
        (packnet_script, "logfile", "a/b.log", "widths.json"),
        (packnet_script, "logfile", "x", ".."),
    ],
)
def test_bounds(
    script: object, flag: str, accepted: str, rejected: str, capsys: pytest.CaptureFixture
) -> None:
    assert hasattr(script.parse([f"--{flag}={accepted}"]), flag)
    assert f"argument --{flag}: must be " in refused(script.parse, [f"--{flag}={rejected}"], capsys)


def test_a_dropout_that_rounds_to_one_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert "argument --dropout: " in refused(spg_script.parse, ["--dropout", "0.1", "0.99999999"], capsys)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_lack_of_memory_is_reported_in_one_line(error: Exception) -> None:
    def main(_: object) -> None:
        raise error

    with pytest.raises(SystemExit, match=r"^error: out of memory: lower "):
        errors.run(main)


def test_a_path_with_a_line_break_is_reported_in_one_line() -> None:
    for error in (errors.UserError("a\nb: correct it"), PermissionError(13, "denied", "a\nb")):

        def main(_: object, error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit, match=r"^error: a\\nb: [^\n]*$"):
            errors.run(main)


# The same, by way of the stages.


class RealList(Bash):
    """The bash layer with the fake interpreter, except that the real one checks the tasks and the values."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        text = self.python.read_text()
        real = f'    "-m tools.list_tasks "*) exec {sys.executable} "$@" ;;\n'
        self.python.write_text(
            text.replace(
                '    "-m tools.list_tasks"*" ${FAKE_REFUSED',
                real + '    "-m tools.list_tasks"*" ${FAKE_REFUSED',
                1,
            )
        )


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EPOCHS", "abc"),
        ("EPOCHS", "0"),
        ("PRUNE_EPOCHS", "1.5"),
        ("LR", "nan"),
        ("BATCH_SIZE", "9" * 25),
        ("SEED", str(2**63)),
        ("RUN", "../x"),
        ("SPARSITIES", "0.5 1"),
        ("SPARSITIES", "0.5 0.4"),
        ("MAX_WIDTH", "inf"),
        ("ALLOW_ACC_LOSS", "-1"),
        ("PROTOCOL", "mine"),
        ("PRECISION", "fp8"),
        ("MAX_ITERATIONS", "x"),
    ],
)
def test_a_bad_variable_is_found_before_any_job(tmp_path: Path, variable: str, text: str) -> None:
    bash = RealList(tmp_path)
    result = bash.run("run_all.sh", **{variable: text})
    assert result.returncode == 2, result.stderr
    *_, line = result.stderr.splitlines()
    assert variable in line and len(result.stderr.splitlines()) == 2
    assert not bash.lines()


def test_good_variables_pass(tmp_path: Path) -> None:
    bash = RealList(tmp_path)
    result = bash.run("wo_backbone.sh", "digits", "1", LR="1e-3", SPARSITIES="0.5", RUN="mine/one")
    assert result.returncode == 0, result.stderr
    assert len(bash.commands()) == 1


@pytest.mark.parametrize("text", ["0008", "9223372036854775808", "9223372036854775807", "0x8", "-1", "1e3"])
@pytest.mark.parametrize("variable", ["JOBS", "THREADS"])
def test_jobs_and_threads_are_small_whole_numbers(tmp_path: Path, variable: str, text: str) -> None:
    result = Bash(tmp_path).run("baseline.sh", **{variable: text})
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {variable}={text} must be a whole number from 1 to ")


@pytest.mark.parametrize("script", ["baseline.sh", "spg.sh"])
def test_a_device_is_checked_before_any_job(tmp_path: Path, script: str) -> None:
    bash = Bash(tmp_path)
    for device in ("gpu", "cuda:", "cuda:1 --overwrite", "cuda:99999"):
        result = bash.run(script, DEVICE=device)
        assert result.returncode == 1 and result.stderr.startswith(f"error: DEVICE={device} must be ")
    assert not bash.lines()


@pytest.mark.parametrize(
    "sizes",
    [
        ("--latent_dim", "65536"),
        ("--latent_heads", "1024", "--latent_dim_head", "65536"),
        ("--depth", "1024"),
    ],
)
def test_a_perceiver_that_no_memory_holds_is_refused_before_it_is_built(sizes: tuple[str, ...]) -> None:
    argv = ["--arch", "perceiver_io", "--latent_dim", "4096", *sizes]
    message = refusal(list_tasks.main, argv)
    assert message == "error: --arch perceiver_io has more than 1e+10 weights: lower the sizes"
    list_tasks.main(["--arch", "perceiver_io", "--latent_dim", "4096", "--depth", "16"])
