"""Probes that are no device's own: a public pool's, or noise."""

import json
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import pickaback_perceiverIO as search_script
from data.loading import load_task
from data.probes import noise_probes, probes_in_folder
from data.tables import load_table
from methods import transferability
from methods.modeldiff import decision_distances
from methods.ownership import SharedNetwork
from pipeline import search
from pipeline.architectures import PLAIN, architecture
from pipeline.probes import SharedProbes
from pipeline.recipe import ProbesRecipe
from tests.helpers import Fleet, load, refusal
from tests.pipeline.test_rules import chosen, rows_of
from tools import list_tasks
from utils.errors import UserError
from utils.seeds import derive_seed

FEW = ("--val_batch_size", "10", "--max_iterations", "0")
POOL = ("--probes", "public", "--public_probes", "eight_nine")


def scratch_network(fleet: Fleet, task: str) -> torch.nn.Module:
    path = fleet.baseline_checkpoint(task)
    build = architecture("lenet5", layers=PLAIN, in_channels=3, size=32)
    return SharedNetwork.from_payload(load(path), build=build, source=path).as_task(task)


def expected_scores(fleet: Fleet, candidate: str, target: str, probes: torch.Tensor) -> dict[str, float]:
    networks = [scratch_network(fleet, task) for task in (candidate, target)]
    with torch.no_grad():
        ddvs = [decision_distances(network(probes))[1] for network in networks]
        features = [network.encode(probes) for network in networks]
    return {
        "ddv_euc": 1 - torch.cosine_similarity(*ddvs, dim=0).item(),
        "cka": transferability.cka(*features),
        "rsa": transferability.rsa(*features),
    }


def test_public_probes_are_training_samples_of_the_pool_alone(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    fleet.search("3", "--select", "cka", *FEW, *POOL)
    table = load_table("digits", data_root=fleet.data)
    pool = load_task(
        table,
        table.task("eight_nine"),
        data_root=fleet.data,
        protocol="published",
        seed=1,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(derive_seed(1, "digits", "probes"))
    images = pool.train.inputs[torch.randperm(len(pool.train), generator=generator)[:20]].double() / 255
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)
    probes = ((images - mean[:, None, None]) / std[:, None, None]).float()
    rows = rows_of(fleet.paths.table_csv("digits"))
    assert rows.keys() == {"1", "2"}
    for candidate, row in rows.items():
        expected = expected_scores(fleet, table.task(candidate).name, "four_five", probes)
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=2e-5)
    assert chosen(fleet) == max(rows, key=lambda candidate: float(rows[candidate]["cka"]))
    # No image is sent: the seed and ten distances for either candidate.
    assert re.search(rf"ddv \d+\.\d\d s {2 * (8 + 4 * 10)} bytes", capsys.readouterr().err)


def test_noise_depends_on_the_seed_alone(fleet: Fleet) -> None:
    fleet.search("3", *FEW, "--probes", "noise")
    table = load_table("digits", data_root=fleet.data)
    seed = derive_seed(1, "digits", "probes")
    halves = noise_probes(10, table=table, seed=seed).halves
    probes = torch.cat(halves)
    assert probes.shape == (20, 3, 32, 32)
    assert probes.mean((0, 2, 3)).abs().max() < 1e-4 and (probes.std((0, 2, 3)) - 1).abs().max() < 1e-3
    rows = rows_of(fleet.paths.table_csv("digits"))
    for candidate, row in rows.items():
        expected = expected_scores(fleet, table.task(candidate).name, "four_five", probes)
        assert float(row["ddv_euc"]) == pytest.approx(expected["ddv_euc"], abs=2e-5)
    assert not torch.equal(noise_probes(10, table=table, seed=seed + 1).halves[0], halves[0])


def test_shared_probes_are_mutated_as_own_ones(fleet: Fleet) -> None:
    found = []
    for mutations in ("0", "5"):
        more = ("--probes", "noise", "--max_iterations", mutations, "--scores", "chosen", "--overwrite")
        fleet.search("3", *FEW, *more)
        found.append([row["ddv_euc"] for row in rows_of(fleet.paths.table_csv("digits")).values()])
    assert found[0] != found[1]


def test_choices_by_other_probes_are_not_taken_for_one_another(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.search("3", *FEW)
    record = fleet.paths.result_csv("digits").with_suffix(".csv.arguments.json")
    assert not json.loads(record.read_text())["3"].keys() & {"probes", "pool"}, "as earlier versions wrote it"
    for probes in (POOL, ("--probes", "noise")):
        message = refusal(search_script.main, fleet.search_flags("3", *FEW, *probes))
        assert f"probes (none recorded, {probes[1]} requested)" in message
    fleet.search("3", *FEW, *POOL, "--overwrite")
    with monkeypatch.context() as patched:
        patched.setattr(search, "compare", lambda *_, **__: pytest.fail("computed again"))
        fleet.search("3", *FEW, *POOL)
    other = ("--probes", "public", "--public_probes", "six_seven")
    assert "pool (" in refusal(search_script.main, fleet.search_flags("3", *FEW, *other))


def test_a_rule_by_labels_says_that_it_ignores_probes(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    fleet.search("3", "--select", "leep", *FEW)
    before = chosen(fleet)
    capsys.readouterr()
    fleet.search("3", "--select", "leep", *FEW, "--probes", "noise", "--overwrite")
    assert chosen(fleet) == before
    assert capsys.readouterr().err.count("The rule leep ignores probes") == 1


def test_a_pool_that_cannot_serve_is_refused_in_one_line(fleet: Fleet, tmp_path: Path) -> None:
    def refused(pool: object, *more: str) -> str:
        flags = ("--probes", "public", "--public_probes", pool, *more)
        return refusal(search_script.main, fleet.search_flags("3", *FEW, *flags))

    assert "is target four_five itself" in refused("four_five")
    assert "is no folder, and table digits has no task" in refused("nothing")
    assert "either network need 2000" in refused("eight_nine", "--val_batch_size", "1000")
    assert f"{tmp_path} has 0 samples" in refused(tmp_path)
    for number in range(20):
        shutil.copy(__file__, tmp_path / f"{number}.png")
    assert "is not a readable image" in refused(tmp_path)
    with pytest.raises(SystemExit) as ended:
        fleet.search("3", "--probes", "public")
    assert ended.value.code == 2


def test_a_misspelt_pool_is_refused_before_any_job() -> None:
    probes = ("--probes", "public", "--public_probes")
    list_tasks.main(["--dataset", "1", *probes, "six_seven"])
    assert "has no task 'sixx'" in refusal(list_tasks.main, ["--dataset", "1", *probes, "sixx"])


def test_images_in_a_folder_are_resized_and_drawn_by_seed(tmp_path: Path, digits_root: Path) -> None:
    for number in range(30):
        path = tmp_path / f"{number % 3}" / f"{number:02}.{'png' if number % 2 else 'JPG'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(numpy.full((7, 40), 8 * number, dtype=numpy.uint8)).save(path)
    table = load_table("digits", data_root=digits_root)
    first, again, other = (probes_in_folder(tmp_path, 6, table=table, seed=seed) for seed in (1, 1, 2))
    assert [half.shape for half in first.halves] == [(6, 3, 32, 32)] * 2
    levels = torch.cat(first.halves).mean((1, 2, 3))
    assert len(levels.unique()) == 12, "each image at most once"
    assert torch.equal(first.halves[1], again.halves[1]) and first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_a_pool_has_the_targets_modality(digits_root: Path) -> None:
    table = load_table("digits_docs", data_root=digits_root)
    image, text = table.task("two_three"), table.task("asyncio_email_xml")

    def shared(probes: str, pool: str | None = None) -> SharedProbes:
        return SharedProbes(
            ProbesRecipe(val_batch_size=3, seed=1, protocol="published", probes=probes),
            pool=pool,
            table=table,
            data_root=digits_root,
            text_encoder="hash",
            device=torch.device("cpu"),
        )

    with pytest.raises(UserError, match="holds texts, and target two_three reads images"):
        shared("public", text.name).drawn(image)
    with pytest.raises(UserError, match="holds images, and target asyncio_email_xml reads texts"):
        shared("public", str(digits_root)).drawn(text)
    with pytest.raises(UserError, match="noise is an image"):
        shared("noise").drawn(text)
    with pytest.raises(UserError, match="candidate asyncio_email_xml does not: use --candidates same"):
        shared("noise").recorded(image, [table.task("four_five"), text])
    halves = shared("public", "decimal_http_multiprocessing").drawn(text).halves
    assert [len(half) for half in halves] == [3, 3] and all(half.dim() == 3 for half in halves)
