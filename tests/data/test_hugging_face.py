import json
import sys

import pytest
import torch
from torch import nn

from data import prepare
from data.hugging_face import HuggingFaceEncoder
from data.text_encoders import MAX_TOKENS, WIDTH, HashEncoder, load_encoder
from utils.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "!"]


class Tokenizer:
    """The part of a tokenizer that the encoder uses: the words' indices in WORDS, between [CLS] and [SEP]."""

    all_special_ids = (0, 1, 2, 3, 4)
    unk_token_id = 1

    def __call__(self, text, *, truncation=False, max_length=None, verbose=True):
        ids = [WORDS.index(word) if word in WORDS else 1 for word in text.lower().split()]
        if truncation:
            ids = ids[: max_length - 2]
        return {"input_ids": [2, *ids, 3]}

    def get_vocab(self):
        return {word: number for number, word in enumerate(WORDS)}


class Embeddings(nn.Module):
    def __init__(self, seed=0, width=WIDTH):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Embedding(MAX_TOKENS, width)

    def forward(self, input_ids):
        return self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]


def encoder(seed=0):
    return HuggingFaceEncoder("models/tiny bert", Tokenizer(), Embeddings(seed))


def test_ids_count_from_one_and_cut_texts_keep_their_last_token():
    assert encoder().tokenise("The cat dreams") == ([3, 6, 7, 2, 4], False)
    ids, cut = encoder().tokenise("cat " * MAX_TOKENS)
    assert (len(ids), cut, ids[-1]) == (MAX_TOKENS, True, 4)
    assert encoder().tokenise("") == ([], False)


def test_padding_is_zero_and_the_rest_is_the_frozen_layer():
    found = encoder().embed(torch.tensor([[3, 6, 4, 0], [3, 4, 0, 0]], dtype=torch.int32))
    layer = Embeddings()
    expected = layer.words.weight[[2, 5, 3]] + layer.positions.weight[:3]
    assert torch.equal(found[0, :3], expected) and not found[0, 3:].any() and not found[1, 2:].any()
    assert not found.requires_grad and found.dtype == torch.float32


def test_narrower_embeddings_are_padded_with_zeros_and_wider_ones_refused():
    narrow = Embeddings(width=5)
    found = HuggingFaceEncoder("mini", Tokenizer(), narrow).embed(torch.tensor([[3, 6, 0]]))
    assert found.shape == (1, 3, WIDTH)
    assert torch.equal(found[0, :2, :5], narrow.words.weight[[2, 5]] + narrow.positions.weight[:2])
    assert not found[..., 5:].any() and not found[0, 2].any()
    with pytest.raises(UserError, match=r"'large' has embeddings of width 769, but networks read at most"):
        HuggingFaceEncoder("large", Tokenizer(), Embeddings(width=769))


@pytest.mark.parametrize(("words", "positions"), [(len(WORDS), MAX_TOKENS - 1), (len(WORDS) - 1, MAX_TOKENS)])
def test_embeddings_too_small_for_the_tokenizer_are_refused(words, positions):
    small = Embeddings()
    small.words, small.positions = nn.Embedding(words, WIDTH), nn.Embedding(positions, WIDTH)
    with pytest.raises(UserError, match=r"'small' cannot embed 128 word pieces of its own vocabulary \("):
        HuggingFaceEncoder("small", Tokenizer(), small)


def test_embeddings_saved_with_fewer_bits_are_read():
    half = HuggingFaceEncoder("bert", Tokenizer(), Embeddings().bfloat16())
    same = HuggingFaceEncoder("bert", Tokenizer(), Embeddings().bfloat16().float())
    tokens = torch.tensor([[3, 6]])
    assert torch.equal(half.embed(tokens), same.embed(tokens)) and half.identity == same.identity


def test_a_path_that_is_not_a_folder_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"text encoder './modles/bert' is not a folder"):
        load_encoder("./modles/bert")


def test_the_identity_depends_on_the_weights_but_not_on_the_path():
    assert encoder().identity == encoder().identity != encoder(seed=1).identity
    assert encoder().identity.startswith("tiny_bert ")
    assert encoder().to("cpu").identity == encoder().identity


def test_a_folder_without_a_tokenizer_or_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} holds no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"{tmp_path} holds no tokenizer \(one of .*vocab\.txt"):
        load_encoder(str(tmp_path))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"'bert-base-uncased' needs the package transformers .*\.\[text\]"):
        load_encoder("bert-base-uncased")


def test_only_models_are_downloaded(tmp_path):
    with pytest.raises(UserError, match="hash needs no download"):
        prepare.main(["digits_docs", "--download_encoder", "--data_root", str(tmp_path)])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder like bert-base-uncased's, with a small vocabulary and one small layer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoders") / "bert-tiny"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_local_bert_gives_its_word_position_and_segment_embeddings_normed(bert, capfd):
    capfd.readouterr()
    loaded = load_encoder(str(bert))
    assert capfd.readouterr().err == ""
    ids, cut = loaded.tokenise("The CATS sat!")
    assert [WORDS[number - 1] for number in ids] == ["[CLS]", "the", "cat", "##s", "sat", "!", "[SEP]"]
    assert not cut
    found = loaded.embed(torch.tensor([[*ids, 0, 0]], dtype=torch.int32))[0]
    state = loaded._embeddings.state_dict()
    rows = torch.tensor(ids) - 1
    summed = state["word_embeddings.weight"][rows] + state["position_embeddings.weight"][: len(ids)]
    summed = (summed + state["token_type_embeddings.weight"][0]).double()
    normed = (summed - summed.mean(1, keepdim=True)) / summed.var(1, correction=0, keepdim=True).sqrt()
    assert (found[: len(ids)] - normed).abs().max() < 1e-4
    assert not found[len(ids) :].any()
    ids, cut = loaded.tokenise("cat " * 200)
    assert (len(ids), cut, WORDS[ids[-1] - 1]) == (MAX_TOKENS, True, "[SEP]")


def test_a_missing_model_is_not_downloaded(bert, tmp_path):
    with pytest.raises(UserError, match=r"'no-such-bert' is not a readable local model .*--download_encoder"):
        load_encoder("no-such-bert")
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 200 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match=r"damaged' is not a readable local model .*: save it again"):
        load_encoder(str(folder))


def test_texts_for_another_encoder_have_a_cache_of_their_own(bert, tmp_path):
    names = {load_encoder(str(bert)).cache_name, HashEncoder().cache_name}
    assert len(names) == 2 and all("/" not in name for name in names)
