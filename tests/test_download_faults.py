"""Downloads that one bad name, one bad certificate or one strange error must not end; and the pictures of a layout."""

import asyncio
import json
import shutil
import ssl
import subprocess

import numpy as np
import pytest
from picture_server import Server, picture

from moon_jax.config import DataConfig
from moon_jax.data import fetch_address, fetch_store, sources
from moon_jax.data.fetch import Limits
from moon_jax.data.fetch_store import Plan, fetch_all
from moon_jax.data.fetch_urls import UrlFile
from moon_jax.data.records import DataError
from moon_jax.data.store import PackedImage, Store
from moon_jax.data.store_encode import StoreSettings
from moon_jax.data.store_writer import Part

QUICK = Limits(timeout_seconds=5.0, attempts=2, backoff_seconds=0.01, rate=1000.0, allow_private=True)


@pytest.fixture
def server():
    with Server() as running:
        yield running


def fetch(path, folder, keys=("image",)):
    async def run():
        return await fetch_all(Plan(UrlFile(path, keys), folder, StoreSettings(), QUICK, Part()), asyncio.Event())

    return asyncio.run(run())


def rows(tmp_path, urls):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": url}) + "\n" for url in urls))
    return path


def journal(tmp_path):
    lines = (tmp_path / "store" / "failed-000.jsonl").read_text().splitlines()
    return {line["key"]: (line["kind"], line["again"]) for line in map(json.loads, lines)}


NO_NAMES = [
    "http://a..b/x.jpg", f"http://{'a' * 64}.com/x.jpg", "http://.a.com/x.jpg", "http://a../x.jpg",
    f"http://{'ü' * 60}.de/x.jpg", "http://./x.jpg",
]  # fmt: skip


@pytest.mark.parametrize("url", NO_NAMES)
def test_names_that_are_none(url):
    assert fetch_address.url_problem(url)


@pytest.mark.parametrize(
    "url", ["http://a.b./x", "http://bücher.de/", f"http://{'a' * 63}.com/", "http://[::1]/", "http://a_b.com/"]
)
def test_names_that_are_some(url):
    assert fetch_address.url_problem(url) == ""


def test_relays_are_no_public_addresses():
    assert not fetch_address.is_public("192.88.99.1")
    assert not fetch_address.is_public("192.88.99.255")
    assert fetch_address.is_public("192.88.100.1")
    assert not fetch_address.is_public("2002:c058:6301::1")  # the same as 6to4


def test_a_bad_name_ends_nothing(tmp_path, server):
    good = f"{server.url}/ok/1.jpg"
    done = fetch(rows(tmp_path, [*NO_NAMES, good]), tmp_path / "store")
    assert (done.stored, done.failed) == (1, {"forbidden URL": len(NO_NAMES)})
    for number, name in enumerate(NO_NAMES):
        server.elsewhere = name
        url = f"{server.url}/away/{number}"
        done = fetch(rows(tmp_path, [url, good]), tmp_path / "store")
        assert (done.there_before, done.failed.total()) == (1, 1), name
        assert journal(tmp_path)[url][0] in ("forbidden URL", "bad answer"), name


def test_an_error_of_any_kind_is_of_one_picture(tmp_path, server, monkeypatch):
    encode = fetch_store.encode

    def breaks(content, settings):
        if content == picture(2):
            raise RuntimeError("a codec with a fault")
        return encode(content, settings)

    monkeypatch.setattr(fetch_store, "encode", breaks)
    urls = [f"{server.url}/ok/{number}.jpg" for number in range(5)]
    done = fetch(rows(tmp_path, urls), tmp_path / "store")
    assert (done.stored, done.failed) == (4, {"bad answer": 1})
    assert journal(tmp_path) == {urls[2]: ("bad answer", True)}
    monkeypatch.undo()
    assert fetch(rows(tmp_path, urls), tmp_path / "store").stored == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_that_does_not_verify(tmp_path, server):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem -days 1"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Server() as secure:
        secure._server.socket = context.wrap_socket(secure._server.socket, server_side=True)
        url, good = f"https://localhost:{secure.port}/ok/1.jpg", f"{server.url}/ok/1.jpg"
        done = fetch(rows(tmp_path, [url, good]), tmp_path / "store")
    assert (done.stored, done.failed) == (1, {"no secure connection": 1})
    assert journal(tmp_path) == {url: ("no secure connection", False)}


def test_lines_of_a_journal_that_are_not_ours(tmp_path, server):
    """They say nothing of whether to ask again: the picture is asked for."""
    url, dead = f"{server.url}/ok/1.jpg", f"{server.url}/ok/2.jpg"
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".lock-000").touch()
    lines = [{"key": url}, {"again": False}, {"key": 3, "again": False}, 7, [], {"key": dead, "again": False}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000
    (tmp_path / "store" / "failed-000.jsonl").write_text(text)
    done = fetch(rows(tmp_path, [url, dead]), tmp_path / "store")
    assert (done.stored, done.dead_before) == (1, 1)


def test_the_pictures_of_our_own_layout(tmp_path, server):
    """Queries, positives, negatives and listings as `prepare` writes them: training finds each in the store."""

    def url(number):
        return f"{server.url}/ok/{number}.jpg"

    said = {
        "id": "1", "query": {"text": "red mug", "image": url(1)},
        "positive": {"item_id": "p", "title": "mug", "images": [url(2), url(3)]},
        "negative": {"item_id": "n", "title": "cup", "images": [url(4)]}, "category": {}, "attributes": {},
    }  # fmt: skip
    item = {"item_id": "p", "title": "mug", "images": [url(2), url(5)]}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "train.jsonl").write_text(json.dumps(said) + "\n")
    (tmp_path / "bench" / "items.jsonl").write_text(json.dumps(item) + "\n")
    stored = [fetch(tmp_path / "bench" / name, tmp_path / "store", UrlFile.KEYS).stored for name in
              ("train.jsonl", "items.jsonl")]  # fmt: skip
    assert stored == [4, 1]
    assert server.asked == {f"/ok/{number}.jpg": 1 for number in range(1, 6)}
    config = DataConfig(
        path=str(tmp_path / "bench"), format="jsonl", unseen_share=0.0, image_store=str(tmp_path / "store")
    )
    (triplet,) = sources.read(config).train
    shown = [triplet.query.image, *triplet.positive.images, *triplet.negative.images]
    assert all(isinstance(one.path, PackedImage) for one in shown)
    assert [one.path.read() for one in shown] == [picture(number) for number in (1, 2, 5, 4)]
    assert len(Store(tmp_path / "store")) == 5


def test_keys_that_lead_through_lists_and_keys_with_dots(tmp_path):
    path = tmp_path / "rows.jsonl"
    record = {"a": [{"b": "http://h/1"}, {"b": ["http://h/2", "x"]}, 3, None], "c.d": "http://h/3", "e": {"f": 1}}
    path.write_text(json.dumps(record) + "\n")
    file = UrlFile(path, ["a.b", "c.d", "e.f.g", "a.b.c", "z"])
    found = file.scan()
    assert list(file.urls(np.ones(len(found), bool))) == ["http://h/1", "http://h/2", "http://h/3"]
    assert file.counts["not_urls"] == 1
    with pytest.raises(DataError, match=r"they have the keys 'a\.b', 'c\.d', 'e\.f'"):
        UrlFile(path, ["image"]).scan()
