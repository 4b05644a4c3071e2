import json
import pickle

import pytest
import tokenizers
from transformers import AutoTokenizer

from moon_jax.data import tokenizer as tok

TEXTS = [
    "Red cotton shirt for men, size XL",
    "纯棉红色衬衫 男士 加大码",
    "Blaue Jacke, wasserdicht",
    "shirt shirt jacket 👕",
] * 5
STRANGE = {
    "english": "A shirt, isn't it?  Size 42",
    "chinese": "纯棉 T恤（红色）¥99",
    "emoji": "👩‍👩‍👧 new 🧥!",
    "never_trained": "Ωмега ไทย \t\r\n end ",
    "right_to_left": "\u202bקפה طازج\u202c",
    "nul": "a\0b",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tok.train_bpe(TEXTS, folder, 400)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tok.load(folder)


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_every_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_ids_equal_transformers(tokenizer, folder, text):
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def test_template_equals_transformers_with_its_special_tokens(tokenizer, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>a shirt<|im_end|>\n"
    assert tokenizer.encode_template(text) == theirs(text)["input_ids"]
    assert tokenizer.image_pad == theirs.convert_tokens_to_ids("<|image_pad|>")
    assert theirs.pad_token == "<|endoftext|>"
    assert theirs.eos_token == "<|im_end|>"
    assert type(theirs).__name__ == "Qwen2Tokenizer"


@pytest.mark.parametrize("name", tok.SPECIAL_TOKENS)
def test_special_tokens_in_a_title_stay_text(tokenizer, name):
    text = f"shirt {name}{name} red"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_are_replaced_and_pairs_joined(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\udc55") == tokenizer.encode("👕")


def test_text_is_normalised_to_nfc(tokenizer):
    assert tokenizer.encode("Cafe\u0301") == tokenizer.encode("Caf\u00e9")


def test_training_merges_what_is_frequent_and_is_deterministic(tokenizer, folder, tmp_path):
    assert len(tokenizer.encode(" shirt")) == 1
    again = tok.train_bpe(iter(TEXTS), tmp_path, 400)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert again.fingerprint == tokenizer.fingerprint
    assert tok.train_bpe(TEXTS[:1], tmp_path, 400).fingerprint != tokenizer.fingerprint
    assert again.vocab_size == tokenizer.vocab_size <= 400
    assert sorted(tokenizer.special.values()) == list(range(tokenizer.vocab_size - 14, tokenizer.vocab_size))


def test_all_bytes_are_there_when_nothing_is_trained(tmp_path):
    bare = tok.train_bpe([], tmp_path, 270)
    assert bare.vocab_size == 270
    assert len(bare.encode("纯棉")) == 6
    with pytest.raises(tok.TokenizerError, match="at least 270 entries"):
        tok.train_bpe([], tmp_path, 269)


def test_workers_get_the_same_tokenizer(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("shirt <|image_pad|>") == tokenizer.encode("shirt <|image_pad|>")
    assert copy.image_pad == tokenizer.image_pad


def test_vocabulary_larger_than_the_model_is_refused(tokenizer, folder):
    assert tok.load(folder, tokenizer.vocab_size).vocab_size == tokenizer.vocab_size
    small = tokenizer.vocab_size - 1
    with pytest.raises(tok.TokenizerError, match=rf"tokenizer\.json has ids up to .*text\.vocab_size is {small}"):
        tok.load(folder, small)


def test_folder_without_tokenizer_json_is_refused(folder, tmp_path):
    state = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(tok.TokenizerError, match=r"no tokenizer\.json \(merges\.txt, vocab\.json\).*save_pretrained"):
        tok.load(tmp_path)
    with pytest.raises(tok.TokenizerError, match="no such folder"):
        tok.load(tmp_path / "missing")


def test_tokenizer_that_splits_the_image_token_is_refused(folder, tmp_path):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "<|image_pad|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(tok.TokenizerError, match=r"no special token <\|image_pad\|>"):
        tok.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(tok.TokenizerError, match="not a tokenizer"):
        tok.load(tmp_path)


def test_added_tokens_that_are_not_special_cannot_be_injected_either(folder, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(["<tool_call>"])  # the real vocabulary has such: added, but not special
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tok.load(tmp_path)
    assert loaded.special["<tool_call>"] not in loaded.encode("a <tool_call> b")
