"""The real vocabulary of Qwen2.5-VL against the library tiktoken with the same ranks, and broken rank files."""

import base64
import json
import re
import sys
import unicodedata

import numpy as np
import pytest
import tiktoken
from transformers import AutoTokenizer

from moon_jax.data import tokenizer as tok
from moon_jax.hf import tiktoken as convert

TEXTS = {
    "empty": "",
    "english": "Women's red dress, V-neck (size M/L) – isn't it 50% OFF?  Don't wait: $19.99!\n",
    "chinese": "2024夏季新款纯棉短袖T恤女装宽松显瘦韩版百搭上衣，包邮！【官方旗舰店】¥99.00／件",
    "mixed": "Nike耐克Air Max 270男子运动鞋AH8050-002 black/黑色 42.5码",
    "contractions": "WE'LL I'd they'RE you've 'S 's",
    "digits": "１２３ 1234567890 3.14159 ①②③ ٣٤",
    "spaces": "a  b   c\t\td \r\n\r\n  e\u3000f\u00a0g   ",
    "runs": "aaaaaaaaaaaaa ======== ----------- 哈哈哈哈哈哈哈 !!!!!!!!!!! 。。。。。。。" + " " * 77 + "x",
    "scripts": "Ωмега ไทย हिन्दी العربية עברית 한국어 日本語 Việt Nam",
    "emoji": "👩‍👩‍👧 🧥👕 🇨🇳 ❤️",
    "decomposed": "Cafe\u0301 A\u030a \u1112\u1161\u11ab",
    "controls": "a\0b\x07\x1b[0m\u200b\u202e\ufeff",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    convert.convert_tiktoken(convert.qwen_ranks(), folder)
    return folder


@pytest.fixture(scope="module")
def qwen(folder):
    return tok.load(folder, vocab_size=151936)


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ranks():
    lines = convert.qwen_ranks().read_text().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


@pytest.fixture(scope="module")
def pattern():
    """How the owners of the file split a text, read from their code."""
    code = convert.qwen_ranks().parents[1] / "tokenizers" / "qwen_tokenizer.py"
    (pattern,) = re.findall(r'^PAT_STR = r"""(.*)"""', code.read_text(), re.MULTILINE)
    return pattern


@pytest.fixture(scope="module")
def reference(ranks, pattern):
    """The ids by another implementation of BPE."""
    encoding = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: encoding.encode_ordinary(unicodedata.normalize("NFC", text))


def test_texts_are_split_as_by_the_owners_of_the_vocabulary(pattern):
    assert pattern == tok.PRETOKENIZE


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_equal_tiktoken_and_transformers(qwen, theirs, reference, text):
    ids = qwen.encode(text)
    assert ids == reference(text)
    assert ids == theirs(text)["input_ids"]
    assert qwen.decode(ids) == unicodedata.normalize("NFC", text)


def test_ids_equal_tiktoken_on_random_texts(qwen, reference, ranks):
    """Tokens in any order, Chinese and other characters, and few characters in many orders."""
    rng = np.random.default_rng(0)
    words = [token.decode() for token in ranks if not re.search(rb"[\x80-\xff]", token)]
    texts = ["".join(words[i] for i in rng.integers(0, len(words), 30)) for _ in range(1500)]
    texts += ["".join(map(chr, rng.integers(0x4E00, 0x9FFF, 30))) for _ in range(500)]
    texts += ["".join(rng.choice(list(alphabet), 40)) for alphabet in ["ab", "aA s't", "的是了，。", "=- \n"] * 400]
    texts += ["".join(chr(c) for c in rng.integers(1, 0x2FFF, 20) if not 0xD800 <= c < 0xE000) for _ in range(500)]
    assert [text for text in texts if qwen.encode(text) != reference(text)] == []


def test_ids_are_the_published_ones(qwen, theirs):
    assert qwen.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert qwen.encode("你好") == [108386]
    published = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|vision_start|>": 151652, "<|vision_end|>": 151653}
    published |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<tool_call>": 151657, "<|file_sep|>": 151664}
    assert {name: qwen.special[name] for name in published} == published
    assert theirs.convert_tokens_to_ids(list(published)) == list(published.values())
    assert (qwen.vocab_size, len(theirs)) == (151665, 151665)


def test_transformers_takes_the_folder_for_a_qwen2_tokenizer(folder, qwen, theirs):
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>红色连衣裙<|im_end|>\n<tool_call>{"
    )
    ids = theirs(text)["input_ids"]
    assert qwen.encode_template(text) == ids
    # What is special is hidden from readers; a call of a tool is not.
    assert theirs.decode(ids, skip_special_tokens=True) == "user\n红色连衣裙\n<tool_call>{"
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert len(merges) == 151643 - 256


@pytest.mark.parametrize("name", [*tok.SPECIAL_TOKENS, *convert.PLAIN_TOKENS])
def test_added_tokens_in_a_title_stay_text(qwen, reference, name):
    ids = qwen.encode(f"红色 {name} dress")
    assert ids == reference(f"红色 {name} dress")
    assert max(ids) < 151643


def test_the_package_is_found_without_running_its_code(monkeypatch):
    assert convert.qwen_ranks().stat().st_size > 2_000_000
    assert "dashscope" not in sys.modules
    monkeypatch.setitem(sys.modules, "dashscope", None)  # as if it were not installed
    with pytest.raises(tok.TokenizerError, match="pip install --no-deps dashscope"):
        convert.qwen_ranks()


BYTES = [bytes([byte]) for byte in range(256)]


def write(path, tokens, ids=None):
    lines = zip(tokens, ids or range(len(tokens)), strict=True)
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in lines))
    return path


def test_merges_are_the_parts_that_lower_ranks_leave(tmp_path):
    file = write(tmp_path / "ranks", [*BYTES, b"ab", b"bc", b"abc", b"cab", b"abab"])
    pairs = list(convert.merged_pairs(convert.read_ranks(file)))
    assert pairs == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"c", b"ab"), (b"ab", b"ab")]
    small = convert.convert_tiktoken(file, tmp_path)
    assert small.encode("ababcab") == [256, 258, 256]
    assert small.encode("abab") == [260]
    assert small.special["<|endoftext|>"] == 261


BROKEN = {
    "lines": (b"YQ== 0\nno\n*** 2\nYQ== x\n", ["line 2 is not", "line 3 is not", "line 4 is not", "0x00, 0x01"]),
    "empty": (b"", ["no token for the bytes 0x00, 0x01, .* \\.\\.\\."]),
    "token_twice": (b"YQ== 0\nYQ== 1\n", ["line 2 has the same token"]),
    "pickle": (b"\x80\x04\x95\x10 \x00\n", ["line 1 is not"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rank_files_are_refused_and_nothing_is_written(tmp_path, name):
    content, messages = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(tok.TokenizerError, match=name) as error:
        convert.convert_tiktoken(tmp_path / name, tmp_path / "out")
    for message in messages:
        assert re.search(message, str(error.value))
    assert not (tmp_path / "out").exists()


def test_ids_with_gaps_and_tokens_without_parts_are_refused(tmp_path):
    holes = write(tmp_path / "holes", [*BYTES, b"ab", b"bc"], [*range(256), 255, 258])
    with pytest.raises(tok.TokenizerError, match="ids 0 to 257 are missing: 256, 257; occur twice: 255"):
        convert.convert_tiktoken(holes, tmp_path / "out")
    lost = write(tmp_path / "lost", [*BYTES, b"ab", b"wxyz", b"xyz"])
    with pytest.raises(tok.TokenizerError, match=r"(?s)token 257 \(b'wxyz'\) is never merged.*token 258 \(b'xyz'\)"):
        convert.convert_tiktoken(lost, tmp_path / "out")
    with pytest.raises(tok.TokenizerError, match="cannot be read: No such file"):
        convert.convert_tiktoken(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
