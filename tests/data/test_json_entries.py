"""The scanner of large JSON files against json.loads, with windows so small that every value is cut somewhere."""

import json

import pytest

from moon_jax.config import DataConfig
from moon_jax.data.records import DataError
from moon_jax.data.sources import json_entries, lines
from moon_jax.data.sources.lines import Reading, RecordError

VALUES = [
    {"title": '红色 \ud83d\ude00 "quoted" \\ ,]}', "n": [1, 2.5e3, None, True, {"a": []}]},
    12345678901,
    "plain, with ] and }",
    [],
    {},
    -0.5,
    None,
    False,
]


def read(path):
    return [entry for _, entry in json_entries.entries(Reading(DataConfig()), path)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_those_of_json(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_entries, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    for ascii_only in (True, False):
        path.write_text("\ufeff" + json.dumps(VALUES[1:], indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert [entry.checked() for entry in read(path)] == VALUES[1:]
        members = {f"key {i} \u7ea2": value for i, value in enumerate(VALUES)}
        text = json.dumps(members, indent=indent, ensure_ascii=ascii_only)
        path.write_bytes(text.encode("utf-8", "surrogatepass") if ascii_only else json.dumps(members).encode())
        assert {entry.key: entry.checked() for entry in read(path)} == json.loads(json.dumps(members))
    for empty in ("[]", " { } \n"):
        path.write_text(empty)
        assert read(path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a JSON array or object, begins with ''"),
        (b"12", "begins with '1'"),
        (b"[1, 2", "entry 2: the file ends here"),
        (b"[1 2]", "entry 1: '2' where ',' or ']' must stand"),
        (b"[1,]", "entry 2: not JSON"),
        (b'{"a": 1]', "entry 1: ']' where ',' or '}' must stand"),
        (b"{1: 2}", "entry 1: a member must be a text"),
        (b'{"a" 2}', "entry 1: a member must be a text"),
        (b"[1] x", "entry 1: something stands behind the end"),
        (b'[{"a": nul}]', "entry 1: not JSON"),
        (b"[" * 100_000, "entry 1: not JSON"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_damage_is_named(tmp_path, monkeypatch, content, message, chunk):
    if len(content) > 1000 and chunk == 1:
        chunk = 1000
    monkeypatch.setattr(json_entries, "CHUNK_BYTES", chunk)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.json")
    assert message in str(error.value)


def test_an_entry_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(json_entries, "MAX_ENTRY_CHARACTERS", 1000)
    monkeypatch.setattr(json_entries, "CHUNK_BYTES", 100)
    (tmp_path / "a.json").write_text('["a", "' + "x" * 1_000_000)
    sizes, read_more = [], lines.WatchedFile.read
    monkeypatch.setattr(lines.WatchedFile, "read", lambda file, size: sizes.append(size) or read_more(file, size))
    with pytest.raises(DataError, match="entry 2: not JSON"):
        read(tmp_path / "a.json")
    assert sum(sizes) < 5000


def test_bad_entries_do_not_end_the_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": {"b": 1, "b": 2}}, {"a": "\xff"}, {"a": "good"}]')
    twice, bytes_, good = read(tmp_path / "a.json")
    with pytest.raises(RecordError, match="named twice: b"):
        twice.checked()
    with pytest.raises(RecordError, match="not UTF-8"):
        bytes_.checked()
    assert good.checked() == {"a": "good"}


def test_an_endless_integer_is_a_bad_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(json_entries, "CHUNK_BYTES", 100)
    (tmp_path / "a.json").write_text('[{"a": -' + "7" * 5001 + '}, {"a": -12345678901234567890}]')
    bad, good = read(tmp_path / "a.json")
    with pytest.raises(RecordError, match="has an integer of 5,001 digits"):
        bad.checked()
    assert good.checked() == {"a": -12345678901234567890}


def test_an_endless_integer_in_a_line_is_a_bad_record():
    with pytest.raises(RecordError, match="not JSON"):
        lines.parse_line(b'{"a": ' + b"7" * 5001 + b"}")
