import hashlib
import math
import zipfile
from pathlib import Path

import pytest
import torch

import packnet_cifar100_main_normal as packnet_script
from data import cache, prepare, text
from data.loading import Batches, load_split, load_task
from data.raw_files import in_test
from data.tables import load_table
from data.text_encoders import MAX_TOKENS, WIDTH, HashEncoder, load_encoder
from tests.helpers import refusal
from utils.errors import UserError

ENTRY = '[letters]\ntext_root = "letters"\n'
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def letters(tmp_path, make_table):
    """A data folder with one task of two classes: ten training and four test texts each."""
    root = tmp_path / "data"
    for split, count in (("train", 10), ("test", 4)):
        for name in ("love", "hate"):
            for number in range(count):
                words = " ".join(WORDS[: number + 1])
                write(root / "letters" / split / "mail" / name / f"{number:02}.txt", f"{name} {words}")
    make_table(ENTRY)
    return root


@pytest.fixture
def table_of(letters, tmp_path):
    return lambda: load_table(str(tmp_path / "table.toml"), data_root=letters)


@pytest.fixture
def load(letters, table_of):
    def load(*, protocol="published", encoder="hash"):
        table = table_of()
        return load_task(
            table,
            table.task("mail"),
            data_root=letters,
            protocol=protocol,
            seed=1,
            device="cpu",
            text_encoder=encoder,
        )

    return load


# The hash encoder.


def test_ids_count_from_one_and_are_the_same_in_every_process():
    ids, cut = HashEncoder().tokenise("The cat's hat -- THE cat!")
    assert not cut
    assert len(ids) == 9  # the cat ' s hat -- the cat !
    assert ids[0] == ids[6] and ids[1] == ids[7]
    digest = hashlib.blake2b(b"cat", digest_size=8).digest()
    assert ids[1] == 1 + int.from_bytes(digest, "big") % (2**15 - 1)


def test_a_longer_text_is_cut():
    ids, cut = HashEncoder().tokenise("word " * (MAX_TOKENS + 1))
    assert (len(ids), cut) == (MAX_TOKENS, True)
    ids, cut = HashEncoder().tokenise("word " * MAX_TOKENS)
    assert (len(ids), cut) == (MAX_TOKENS, False)


def test_embeddings_are_fixed_and_zero_only_at_padding():
    tokens = torch.tensor([[1, 2, 2**15 - 1, 0]], dtype=torch.int32)
    embedded = HashEncoder().embed(tokens)
    assert (embedded.dtype, embedded.shape) == (torch.float32, (1, 4, WIDTH))
    assert embedded[0].norm(dim=1).tolist() == pytest.approx([math.sqrt(WIDTH)] * 3 + [0])
    cosines = torch.corrcoef(embedded[0, :3])
    assert (cosines - torch.eye(3)).abs().max() < 0.15
    assert torch.equal(embedded, HashEncoder().embed(tokens))


# From files to batches.


def test_texts_come_by_sorted_class_and_file_name_padded_with_zero(load):
    data = load()
    assert data.task.modality == "text" and data.task.classes == ("hate", "love")
    assert data.train.inputs.shape == (20, MAX_TOKENS) and data.train.inputs.dtype == torch.int32
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10
    expected, _ = HashEncoder().tokenise("hate alpha beta")
    assert data.train.inputs[1].tolist() == expected + [0] * (MAX_TOKENS - 3)


def test_batches_are_embedded_and_cut_to_their_longest_text(load):
    data = load()
    batches = Batches(data, batch_size=4, val_batch_size=3)
    seen = 0
    for inputs, labels in batches.epoch(torch.Generator().manual_seed(1)):
        real = inputs.abs().sum(2) > 0
        assert inputs.dtype == torch.float32 and inputs.shape[2] == WIDTH
        assert real[:, 0].all() and real.any(0).all()
        # Padding follows a text's words.
        assert (real.long().diff(dim=1) <= 0).all()
        seen += len(labels)
    assert seen == 20
    first, labels = next(iter(batches.test()))
    assert first.shape == (3, 4, WIDTH)  # the first three test texts have 2, 3 and 4 words
    assert torch.equal(first, HashEncoder().embed(data.test.inputs[:3, :4]))
    assert labels.tolist() == [0, 0, 0]


def test_the_same_generator_state_gives_the_same_epoch(load):
    batches = Batches(load(), batch_size=4)
    one, two = (list(batches.epoch(torch.Generator().manual_seed(5))) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, two, strict=True))


def test_heldout_holds_out_a_tenth_of_each_class(load):
    data = load(protocol="heldout")
    assert data.validation.labels.tolist() == [0, 1]
    assert (len(data.train), len(data.test)) == (18, 8)


def test_first_inputs_are_the_first_validation_samples(load):
    data = load()
    assert data.first_inputs(2).shape == (2, 3, WIDTH)
    assert torch.equal(data.first_inputs(2), HashEncoder().embed(data.test.inputs[:2, :3]))
    assert len(data.first_inputs(100)) == 8


def test_the_fingerprint_follows_texts_and_encoder(load, letters, monkeypatch):
    first = load().fingerprint
    assert load(protocol="heldout").fingerprint == first
    monkeypatch.setattr(HashEncoder, "identity", "hash 2")
    assert load().fingerprint != first
    monkeypatch.undo()
    write(letters / "letters/train/mail/love/00.txt", "love omega")
    assert load().fingerprint != first


def test_unchanged_texts_are_not_tokenised_again(load, letters, monkeypatch):
    data = load()
    monkeypatch.setattr(HashEncoder, "tokenise", None)
    assert load().fingerprint == data.fingerprint


def test_without_the_tree_the_cache_is_used(load, letters, make_table):
    make_table(ENTRY + 'tasks = [{ name = "mail", classes = ["love", "hate"] }]')
    data = load()
    (letters / "letters").rename(letters / "elsewhere")
    assert load().fingerprint == data.fingerprint
    make_table(ENTRY)
    assert load().task.classes == ("hate", "love")


def test_an_output_made_with_another_encoder_is_refused_by_name(letters, table_of, tmp_path, monkeypatch):
    flags = ["--arch", "perceiver_io", "--num_latents", "2", "--latent_dim", "8", "--depth", "1"]
    flags += ["--dataset_config", str(tmp_path / "table.toml"), "--epochs", "1", "--device", "cpu"]
    for name, root in (("data", letters), ("checkpoints", tmp_path / "c"), ("logs", tmp_path / "l")):
        flags += [f"--{name}_root", str(root)]
    packnet_script.main(flags)
    monkeypatch.setattr(HashEncoder, "identity", "hash 2")
    message = refusal(packnet_script.main, flags)
    assert "text_encoder (hash 1 recorded, hash 2 requested)" in message


# Bad input.


def test_empty_texts_are_left_out_and_other_encodings_are_decoded_with_replacement(load, letters, caplog):
    write(letters / "letters/train/mail/love/00.txt", " \n\t")
    write(letters / "letters/train/mail/love/01.txt", "")
    write(letters / "letters/train/mail/hate/00.txt", "caf\xe9 noir".encode("latin-1"))
    write(letters / "letters/test/mail/hate/00.txt", "\ufeffhate alpha".encode())
    data = load()
    assert data.train.labels.tolist() == [0] * 10 + [1] * 8
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    assert warned[0].startswith("mail, train: 2 of 20 texts empty and left out (the first: ")
    assert warned[0].endswith("love/00.txt)")
    assert warned[1].startswith("mail, train: 1 of 20 texts not in UTF-8, decoded with replacement")
    # A byte-order mark is not a token.
    assert (data.test.inputs[0] != 0).sum() == 2


def test_a_class_of_only_empty_texts_is_refused(load, letters):
    for path in (letters / "letters/test/mail/love").iterdir():
        path.write_text("")
    with pytest.raises(UserError, match="task mail, test: all texts of class love are empty"):
        load()


def test_a_class_without_texts_is_refused(load, letters):
    for path in (letters / "letters/test/mail/love").iterdir():
        path.rename(path.with_suffix(".doc"))
    with pytest.raises(UserError, match=r"test/mail/love holds no texts: put the texts there .*\*\.txt"):
        load()


def test_a_missing_text_folder_beside_its_images_is_named(make_tree, make_table, letters):
    root = make_tree({"mail": ["love", "hate"]})
    entry = '[both]\nroot = "pictures"\ntext_root = "letters"\nsize = 8\n'
    entry += 'tasks = [{ name = "faces", folder = "mail" }, { name = "mail", modality = "text" }]'
    table = load_table(str(make_table(entry)), data_root=root)
    assert [(task.modality, task.classes) for task in table.tasks] == [
        ("image", ("hate", "love")),
        ("text", ("hate", "love")),
    ]
    assert load_split(table, table.task("faces"), "test", data_root=root)["images"].shape == (6, 3, 8, 8)
    assert len(load_split(table, table.task("mail"), "test", data_root=root)["labels"]) == 8
    declared = entry.replace('"text" }', '"text", classes = ["love", "hate"] }')
    (letters / "letters/test/mail").rename(letters / "gone")
    table = load_table(str(make_table(declared)), data_root=root)
    with pytest.raises(UserError, match=r"letters/test/mail not found, but its images are there .*put the"):
        load_split(table, table.task("mail"), "test", data_root=root)


def test_a_damaged_cache_is_rebuilt(load, letters, caplog):
    data = load()
    path = cache.path_of(letters, "letters", "mail", "train", encoder="hash")
    path.write_bytes(path.read_bytes()[:-100])
    assert load().fingerprint == data.fingerprint
    assert "train-hash.pt is truncated or not a cache of texts" in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('[a]\nroot = "a"\ntasks = [{ name = "b", classes = ["x"], modality = "text" }]', "no text_root"),
        ('[a]\ntext_root = "a"\ntasks = [{ name = "b", classes = ["x"], modality = "image" }]', "no root"),
        ('[a]\ntext_root = "a"\ntasks = [{ name = "b", classes = ["x"], mean = [0], std = [1] }]', "mean"),
        ('[a]\ntext_root = "a"\ntasks = [{ name = "fish", table = "nowhere" }]', "choose another of digits"),
        ('[a]\ntext_root = "a"\ntasks = [{ name = "flsh", table = "cifar100" }]', "has no task 'flsh'"),
        (
            '[a]\ntext_root = "a"\nsize = 8\ntasks = [{ name = "fish", table = "cifar100" }]',
            "same channels and size",
        ),
        (
            '[a]\ntext_root = "a"\ntasks = [{ name = "fish", table = "cifar100", classes = ["x"] }]',
            "unknown key classes",
        ),
        ("[a]\nroot = 3", "no root"),
        ('[a]\nroot = "a"\ntext_root = 3', "text_root is 3"),
    ],
)
def test_an_invalid_entry_is_refused_by_name(tmp_path, make_table, entry, message):
    with pytest.raises(UserError, match=message):
        load_table(str(make_table(entry)), data_root=tmp_path)


# Tables.


def test_a_zip_of_texts_gives_the_same_samples_as_its_tree(load, letters, tmp_path, caplog):
    expected = load().fingerprint
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as archive:
        for file in sorted((letters / "letters").rglob("*.txt"), reverse=True):
            archive.write(file, file.relative_to(letters))
    toml = tmp_path / "declared.toml"
    toml.write_text(ENTRY + 'tasks = [{ name = "mail", classes = ["love", "hate"] }]')
    other = tmp_path / "b"
    with caplog.at_level("INFO"):
        prepare.main([str(toml), "--source", str(tmp_path / "letters.zip"), "--data_root", str(other)])
    assert caplog.messages[-1].startswith("letters: 1 tasks, 20 training and 8 test texts in ")
    table = load_table(str(toml), data_root=other)
    data = load_task(table, table.tasks[0], data_root=other, protocol="published", seed=1, device="cpu")
    assert data.fingerprint == expected


def test_the_test_fifth_is_stable():
    chosen = [in_test(f"group/{number}") for number in range(2000)]
    assert 350 < sum(chosen) < 450
    assert chosen[:10] == [in_test(f"group/{number}") for number in range(10)]


def test_an_unknown_encoding_is_decoded_with_replacement():
    assert text.decode(b"plain") == ("plain", False)
    assert text.decode(b"caf\xe9") == ("caf\ufffd", True)


def test_an_encoder_is_loaded_once():
    assert load_encoder("hash") is load_encoder("hash", device="cpu")
