"""Every script that computes sets the numerics that its flags request before anything else."""

import pytest

import CPG_cifar100_main_normal
import CPG_MM_main_normal
import packnet_cifar100_main_normal
import pickaback_perceiverIO
import spg_main
from tools import verify_pairs
from utils import runtime

SPG = ("--seq", "digits_5", "--appr", "spg")


class Reached(Exception):
    """The numerics have been set."""


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (packnet_cifar100_main_normal, ("--dataset", "1")),
        (CPG_cifar100_main_normal, ("--dataset", "1")),
        (CPG_cifar100_main_normal, ("--mode", "finetune", "prune", "--total_num_tasks", "3")),
        (CPG_MM_main_normal, ("--dataset", "1", "--arch", "perceiver_io")),
        (pickaback_perceiverIO, ("--dataset", "1")),
        (spg_main, SPG),
        (spg_main, (*SPG, "--tune")),
        (verify_pairs, ("exported.pt2", "--pairs", "pairs.txt", "--images", "faces")),
    ],
)
def test_scripts_set_the_requested_numerics(monkeypatch, script, flags: tuple[str, ...]) -> None:
    def spy(**settings) -> None:
        raise Reached(settings)

    monkeypatch.setattr(runtime, "set_numerics", spy)
    monkeypatch.setattr(runtime, "set_threads", lambda threads: None)
    with pytest.raises(Reached) as reached:
        script.main([*flags, "--precision", "tf32", "--nondeterministic"])
    assert reached.value.args == ({"precision": "tf32", "nondeterministic": True},)
