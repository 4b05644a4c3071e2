"""Rows of CSV and TSV files that are damaged: what is lost is one row, and it is named."""

import pytest

from moon_jax.config import DataConfig
from moon_jax.data import sources
from moon_jax.data.records import DataError
from moon_jax.data.sources import delimited
from moon_jax.data.sources.delimited import csv_rows
from moon_jax.data.sources.lines import Reading, RecordError


def rows(path):
    return list(csv_rows(Reading(DataConfig()), path))


def read(folder, **settings):
    return sources.read(DataConfig(path=str(folder), format="table", **settings), triplets=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('1,"27 inch screen,1.jpg', "unexpected end of data"),
        ('1,"27" screen,1.jpg', "expected after"),
        ('1,"27 inch screen,"', "has 2 cells"),
    ],
)
def test_an_unclosed_quote_costs_its_own_row(tmp_path, line, message):
    good = [f'{n},"title, {n}",{n}.jpg' if n % 2 and "unexpected" not in message else f"{n},t,x" for n in range(2, 50)]
    (tmp_path / "a.csv").write_text("\n".join(["id,title,image", "0,first,0.jpg", line, *good]) + "\n")
    found = rows(tmp_path / "a.csv")
    assert [number for number, _ in found] == list(range(2, 52))
    assert [number for number, cells in found if isinstance(cells, RecordError)] == [3]
    assert message in str(found[1][1])
    with pytest.raises(DataError, match=rf"a\.csv:3: line: .*{message}"):
        read(tmp_path)
    assert read(tmp_path, on_error="skip", max_skipped_share=0.1).products.keys() == {"0", *map(str, range(2, 50))}


def test_rows_between_two_unclosed_quotes_are_kept(tmp_path):
    (tmp_path / "a.csv").write_text('id,title,image\n1,"a,1.jpg\n2,b,2.jpg\n3,c,"\n4,d,4.jpg\n')
    found = rows(tmp_path / "a.csv")
    assert [number for number, cells in found if isinstance(cells, dict)] == [3, 5]
    assert [number for number, _ in found] == [2, 3, 4, 5]


def test_a_row_spans_so_many_lines_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "ROW_LINES", 4)
    (tmp_path / "a.csv").write_text('id,title\n1,"a\nb\nc\nd"\n2,"a\nb\nc\nd\ne"\n3,z\n')
    found = rows(tmp_path / "a.csv")
    assert found[0] == (2, {"id": "1", "title": "a\nb\nc\nd"})
    assert found[-1] == (11, {"id": "3", "title": "z"})
    assert all(isinstance(cells, RecordError) for _, cells in found[1:-1])


def test_quotes_of_a_tsv_that_do_not_balance_are_plain(tmp_path):
    said = [
        '1\t"27 inch\t1.jpg',
        '2\t27"\t2.jpg',
        '3\t"so" it is\t3.jpg',
        '4\t"quoted"\t4.jpg',
        '5\t5"\t"',
        "6\tf\t6.jpg",
    ]
    (tmp_path / "a.tsv").write_text("\n".join(["id\ttitle\timage", *said]) + "\n")
    found = rows(tmp_path / "a.tsv")
    titles = ['"27 inch', '27"', '"so" it is', "quoted", '5"', "f"]
    assert [cells["title"] for _, cells in found] == titles
    (tmp_path / "a.tsv").write_text('id\ttitle\timage\n1\t"over\nlines"\t1.jpg\n2\t"\tb.jpg\n')
    assert [cells["title"] for _, cells in rows(tmp_path / "a.tsv")] == ["over\nlines", '"']


def test_lines_that_end_at_a_carriage_return(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,title\r1,Coat\r2,"Hat, red"\r\r3,Cap\n4,Bag')
    assert [(n, cells["title"]) for n, cells in rows(tmp_path / "a.csv")] == [
        (2, "Coat"), (3, "Hat, red"), (5, "Cap"), (6, "Bag"),
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"id,title\n1,Co\rat\n2,Hat\n")
    (_, first), (_, second) = rows(tmp_path / "a.csv")
    assert isinstance(first, RecordError)
    assert second["title"] == "Hat"


def test_a_header_that_is_not_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,"title\n1,a\n')
    with pytest.raises(DataError, match=r"a\.csv:1: must be a header of column names, is not CSV"):
        read(tmp_path)
