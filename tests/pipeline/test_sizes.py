"""The size flags: which architectures have them, and checkpoints with other sizes."""

from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import packnet_models
from pipeline import architectures, flags
from tests.helpers import Fleet, load, refusal
from tools import select_pruning_ratio as select_script
from utils.errors import UserError

REGISTRY = packnet_models.ARCHITECTURES
TINIEST = ("--size", "tiny", "--num_latents", "4", "--latent_dim", "16", "--depth", "1")


def builder(name: str, **sizes) -> architectures.Builder:
    return architectures.architecture(name, layers=architectures.PLAIN, in_channels=3, size=8, sizes=sizes)


def test_flags_override_the_preset_and_the_preset_overrides_the_defaults():
    base = builder("perceiver_io").sizes
    assert base["num_latents"] == 256 and base["latent_dim"] == 512 and base["depth"] == 3
    tiny = builder("perceiver_io", size="tiny", depth=4).sizes
    changed = {name: value for name, value in tiny.items() if value != base[name]}
    assert changed == {"num_latents": 32, "latent_dim": 128, "depth": 4, "latent_heads": 4}
    features = builder("perceiver_io", size="tiny", depth=4)(width=1.0).features
    assert len(features.blocks[0]) == 4 and features.latents.shape == (32, 128)


def test_width_scales_latents_feed_forward_and_features_but_not_attention():
    with torch.device("meta"):
        features = builder("perceiver_io")(width=1.5**0.5).features
    assert features.latents.shape == (256, 627)
    assert features.blocks[0][2].feed_forward.down.weight.shape == (627, 2508)
    assert features.readout.weight.shape == (102, 627)
    assert features.blocks[0][0].attention.q.weight.shape == (512, 627)
    assert features.inputs["text"].kv.weight.shape == (128, 768)


def test_a_perceiver_reads_in_every_layer():
    with torch.device("meta"):
        features = builder("perceiver", self_per_cross_attn=2)(width=1.0).features
    assert len(features.reads) == 5 and [len(blocks) for blocks in features.blocks] == [2] * 5
    assert features.inputs["image"].kv.weight.shape == (5 * 128, 29)


@pytest.mark.parametrize(
    ("arch", "sizes", "message"),
    [
        ("lenet5", {"size": "tiny"}, "--arch lenet5 has no preset tiny"),
        ("lenet5", {"depth": 2, "latent_dim": 8}, "--arch lenet5 has no depth, latent_dim"),
        ("perceiver_io", {"self_per_cross_attn": 2}, "--arch perceiver_io has no self_per_cross_attn"),
        (
            "perceiver_io",
            {"size": "huge"},
            "--arch perceiver_io has no preset huge: choose one of base, tiny",
        ),
    ],
)
def test_sizes_that_an_architecture_lacks_are_refused_by_name(arch, sizes, message):
    with pytest.raises(UserError, match=message):
        builder(arch, **sizes)


def test_every_size_is_a_flag():
    parser = flags.parser("")
    flags.add_files(parser)
    known = {action.dest for action in parser._actions}
    sizes = {name for made in REGISTRY.values() for name in getattr(made, "sizes", {})}
    assert sizes <= known
    assert flags.given_sizes(parser.parse_args([])) == {}
    given = flags.given_sizes(parser.parse_args(["--size", "tiny", "--max_freq", "12"]))
    assert given == {"size": "tiny", "max_freq": 12.0}


def test_a_checkpoint_records_its_sizes_and_other_sizes_are_refused_by_name(fresh: Fleet):
    few = ("--arch", "perceiver_io", "--run", "perceiver_io/seed1", "--epochs", "1", *TINIEST)
    fresh = Fleet(root=fresh.root, data=fresh.data, run="perceiver_io/seed1")
    fresh.baseline("zero_one", *few)
    path = fresh.paths.baselines("digits") / "zero_one" / "checkpoint-1.pth.tar"
    payload = load(path)
    assert payload["architecture"]["sizes"]["latent_dim"] == 16

    argv = fresh.baseline_flags("zero_one", *few, "--latent_dim", "24", "--depth", "2")
    message = refusal(packnet_script.main, argv)
    assert (
        "latent_dim (16 recorded, 24 requested)" in message and "depth (1 recorded, 2 requested)" in message
    )
    message = refusal(packnet_script.main, [*argv, "--mode", "inference"])
    assert (
        "holds a network with other sizes" in message and "latent_dim (16 recorded, 24 requested)" in message
    )
    message = refusal(cpg_script.main, fresh.own_flags("zero_one", "--size", "tiny"))
    assert "--arch lenet5 has no preset tiny" in message
    assert "--arch lenet5 has no depth" in refusal(select_script.main, fresh.select_flags("1", "--depth", 2))


def test_texts_require_a_perceiver_with_enough_positions(tmp_path: Path, make_table):
    for split, count in (("train", 6), ("test", 2)):
        for word in ("love", "hate"):
            folder = tmp_path / "data" / "letters" / split / "mail" / word
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.txt").write_text(f"I {word} you" + ", truly" * number)
    table = make_table('[letters]\ntext_root = "letters"\n')
    fleet = Fleet(root=tmp_path / "fleet", data=tmp_path / "data", run="mail")
    argv = fleet.flags("--dataset_config", table, "--dataset", "mail", "--run", "mail", "--epochs", 1)
    assert "task mail has text inputs, and the network reads image" in refusal(packnet_script.main, argv)

    argv += ["--arch", "perceiver", *TINIEST]
    message = refusal(packnet_script.main, [*argv, "--max_text_length", "5"])
    assert "--max_text_length 5: task mail has texts of 13 tokens: give 13 or more" in message
    packnet_script.main(argv)
    payload = load(fleet.paths.baselines("letters") / "mail" / "checkpoint-1.pth.tar")
    assert payload["shared_layer_info"]["mail"]["modality"] == "text"
