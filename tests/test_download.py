"""Fetching pictures from a server that is slow, breaks off, lies and leads astray."""

import asyncio
import collections
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from picture_server import Server, picture

from moon_jax import download
from moon_jax.config import DataConfig
from moon_jax.data import fetch_address, picture_files, sources
from moon_jax.data.fetch import Limits
from moon_jax.data.fetch_store import Plan, fetch_all
from moon_jax.data.fetch_urls import UrlFile
from moon_jax.data.records import DataError
from moon_jax.data.store import PackedImage, Store, shard_names
from moon_jax.data.store_encode import StoreSettings
from moon_jax.data.store_writer import Part

QUICK = {
    "timeout_seconds": 0.6, "attempts": 3, "backoff_seconds": 0.02, "rate": 1000.0, "per_host": 16,
    "max_bytes": 300_000, "redirects": 3, "allow_private": True,
}  # fmt: skip


@pytest.fixture
def server():
    with Server() as running:
        yield running


def plan(tmp_path, urls, changes=None, **more):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"doc_image": url}) + "\n" for url in urls))
    options = {"part": Part(), "shard_pictures": 8} | more
    return Plan(
        UrlFile(path, ["doc_image"]), tmp_path / "store", StoreSettings(), Limits(**QUICK | (changes or {})), **options
    )


def fetch(tmp_path, urls, changes=None, **more):
    async def run():
        return await fetch_all(plan(tmp_path, urls, changes, **more), asyncio.Event())

    return asyncio.run(run())


def journal(tmp_path):
    lines = (tmp_path / "store" / "failed-000.jsonl").read_text().splitlines()
    return {line["key"]: line for line in map(json.loads, lines)}


def stored(tmp_path, url):
    store = Store(tmp_path / "store")
    row = int(store.find([url])[0])
    return store.read(row) if row >= 0 else None


GOOD = {  # path -> the number of its picture
    "ok/1.jpg": 1, "plain/2": 2, "chunked/3": 3, "cut_once/4": 4, "flaky/5": 5, "busy/6": 6, "hop/3": 77,
    "hop_endless/1": 78,
}  # fmt: skip
BAD = {  # path -> (kind, whether it may pass)
    "slow/1": ("timeout", True),
    "silent/1": ("timeout", True),
    "slow_header/1": ("timeout", True),
    "cut/1": ("broke off", True),
    "cut_chunks/1": ("broke off", True),
    "cut_plain/1": ("not a picture", True),
    "hang_up": ("broke off", True),
    "garbage": ("bad answer", True),
    "many_headers": ("bad answer", True),
    "long_header": ("bad answer", True),
    "huge_said/1": ("too large", False),
    "endless/1": ("too large", False),
    "status/404": ("HTTP 404", False),
    "status/410": ("HTTP 410", False),
    "status/403": ("HTTP 403", False),
    "status/500": ("HTTP 500", True),
    "status/204": ("HTTP 204", False),
    "status/206": ("HTTP 206", False),
    "nowhere": ("HTTP 302", False),
    "loop": ("too many redirects", False),
    "hop/9": ("too many redirects", False),
    "html/1.jpg": ("not a picture", False),
    "html_as_jpeg/1.jpg": ("not a picture", False),
    "gzip/1": ("bad answer", False),
    "empty/1": ("empty", True),
    "bomb/1": ("not a picture", False),
}


def test_every_kind_of_answer(tmp_path, server):
    urls = [f"{server.url}/{path}" for path in (*GOOD, *BAD)]
    done = fetch(tmp_path, urls)
    for path, number in GOOD.items():
        assert stored(tmp_path, f"{server.url}/{path}") == picture(number), path
    said = journal(tmp_path)
    assert {path: (said[f"{server.url}/{path}"]["kind"], said[f"{server.url}/{path}"]["again"]) for path in BAD} == BAD
    assert len(said) == len(BAD)
    assert (done.stored, done.failed) == (len(GOOD), collections.Counter(kind for kind, _ in BAD.values()))
    for path, (_, again) in BAD.items():  # what may pass is asked for `attempts` times, the rest once
        if path not in ("loop", "hop/9", "hang_up"):  # aiohttp itself asks once more where a server hangs up
            assert server.asked[f"/{path}"] == (3 if again else 1), path
    server.asked.clear()
    done = fetch(tmp_path, urls)
    assert (done.stored, done.there_before, done.dead_before) == (0, len(GOOD), sum(not a for _, a in BAD.values()))
    assert {path.strip("/") for path in server.asked} == {path for path, (_, again) in BAD.items() if again}


def test_answers_do_not_get_mixed_up(tmp_path, server):
    """A server that sends more than it said on a connection that is used again: no picture under another's URL."""
    urls = [f"{server.url}/{'understated' if i % 3 == 0 else 'ok'}/{i}.jpg" for i in range(60)]
    fetch(tmp_path, urls, {"per_host": 1})
    for number, url in enumerate(urls):
        assert stored(tmp_path, url) == (picture(number) if number % 3 else None), url


ADDRESSES = {
    "8.8.8.8": True, "2606:4700:4700::1111": True, "::ffff:8.8.8.8": True, "64:ff9b::808:808": True,
    "127.0.0.1": False, "127.9.9.9": False, "0.0.0.0": False, "10.1.2.3": False, "172.16.0.1": False,
    "172.31.255.255": False, "172.32.0.1": True, "192.168.1.1": False, "169.254.169.254": False, "100.64.0.1": False,
    "198.18.0.1": False, "192.0.2.1": False, "224.0.0.1": False, "239.1.1.1": False, "240.0.0.1": False,
    "255.255.255.255": False, "::": False, "::1": False, "fe80::1": False, "fe80::1%eth0": False, "fc00::1": False,
    "fd12::1": False, "ff02::1": False, "ff0e::1": False, "::ffff:127.0.0.1": False, "::ffff:10.0.0.1": False,
    "2002:7f00:1::": False, "2002:a00:1::1": False, "64:ff9b::7f00:1": False, "64:ff9b::a9fe:a9fe": False,
    "64:ff9b:1::1": False, "2001:db8::1": False, "fec0::1": False, "::127.0.0.1": False, "localhost": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address):
    assert fetch_address.is_public(address) == ADDRESSES[address]


URLS = {
    "http://example.com/a.jpg": "", "https://example.com:8443/a.jpg?b=c#d": "", "HTTP://EXAMPLE.COM/": "",
    "ftp://example.com/a.jpg": "only http and https", "file:///etc/passwd": "only http and https",
    "data:image/png;base64,aaaa": "only http and https", "javascript:alert(1)": "only http and https",
    "//example.com/a.jpg": "only http and https", "a.jpg": "only http and https", "": "only http and https",
    "http://": "no ", "http:///a.jpg": "no ", "http://user:secret@example.com/": "password",
    "http://user@example.com/": "password", "http://exa mple.com/": "no host", "http://[::1/": "no URL",
    "http://example.com:99999/": "no URL", "http://" + "a" * 9000: "longer than",
}  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_urls(url):
    problem = fetch_address.url_problem(url)
    assert URLS[url] in problem
    assert bool(problem) == bool(URLS[url])


def test_this_machine_is_not_asked_under_any_name(tmp_path, server):
    names = (
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "LOCALHOST", "localhost.", "%31%32%37.0.0.1", "①②⑦.⓪.⓪.①",
    )  # fmt: skip
    urls = [f"http://{name}:{server.port}/ok/1.jpg" for name in names]
    done = fetch(tmp_path, urls, {"allow_private": False, "attempts": 1})
    assert server.connections == 0
    assert done.stored == 0
    assert done.failed["forbidden address"] >= 7
    (tmp_path / "store" / "failed-000.jsonl").unlink()
    assert fetch(tmp_path, urls[:2], {"attempts": 1}).stored == 2  # the same names, where it is allowed


def test_redirects_to_private_addresses_are_not_followed(tmp_path, server, monkeypatch):
    """127.0.0.1 stands for a public server; all else is as it is."""
    judge = fetch_address.is_public
    monkeypatch.setattr(fetch_address, "is_public", lambda address: address == "127.0.0.1" or judge(address))
    with Server("127.0.0.2") as inner:
        targets = {
            f"{inner.url}/ok/1.jpg": "forbidden address", "http://169.254.169.254/latest": "forbidden address",
            f"http://[::ffff:127.0.0.2]:{inner.port}/ok/1": "forbidden address", "file:///etc/passwd": "forbidden URL",
            f"//127.0.0.2:{inner.port}/ok/1.jpg": "forbidden address", "http://u:p@127.0.0.1/": "forbidden URL",
            "gopher://127.0.0.1/": "forbidden URL", "http://[": "bad answer",
        }  # fmt: skip
        for number, (target, kind) in enumerate(targets.items()):
            server.elsewhere = target
            url = f"{server.url}/away/{number}"
            fetch(tmp_path, [url], {"allow_private": False, "attempts": 1})
            assert journal(tmp_path)[url]["kind"] == kind, target
            assert server.asked[f"/away/{number}"] == 1
        assert inner.connections == 0
        server.elsewhere = f"{server.url}/ok/5.jpg"
        assert fetch(tmp_path, [f"{server.url}/away/99"], {"allow_private": False}).stored == 1


def test_names_that_resolve_to_private_addresses(tmp_path, server, monkeypatch):
    """A name server that says one thing first and another later: what is connected to is judged, each time."""
    monkeypatch.setattr(fetch_address, "is_public", lambda address: address == "127.0.0.1")
    known, answers = socket.getaddrinfo, iter(["127.0.0.1", *["127.0.0.2"] * 9])

    def resolve(host, *arguments, **options):
        return known(next(answers) if host == "rebind.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with Server("127.0.0.2") as inner:
        for number, port in enumerate((server.port, inner.port)):
            fetch(tmp_path, [f"http://rebind.test:{port}/ok/{number}.jpg"], {"allow_private": False, "attempts": 1})
        assert (server.connections, inner.connections) == (1, 0)
        assert journal(tmp_path)[f"http://rebind.test:{inner.port}/ok/1.jpg"]["kind"] == "forbidden address"


def test_a_host_is_asked_at_its_rate_and_others_do_not_wait(tmp_path, server):
    with Server() as other:
        slow = [f"{server.url}/ok/{i}.jpg" for i in range(12)]
        urls = [*slow, *(f"{other.url}/ok/{i}.jpg" for i in range(12))]
        done = fetch(tmp_path, urls, {"rate": 20.0, "per_host": 2})
        assert done.stored == 24
        for asked in (server.times, other.times):
            gaps = [b - a for a, b in itertools.pairwise(asked)]
            assert sum(gaps) >= 11 / 20 * 0.9
        assert min(other.times) < min(server.times) + 0.3  # not after the twelve of the first


@pytest.mark.parametrize(("connections", "per_host"), [(3, 16), (64, 2)])
def test_few_requests_at_once(tmp_path, server, connections, per_host):
    done = fetch(tmp_path, [f"{server.url}/late/{i}.jpg" for i in range(12)], {
        "connections": connections, "per_host": per_host,
    })  # fmt: skip
    assert done.stored == 12
    assert server.most == min(connections, per_host)


def test_a_host_that_asks_for_a_pause_gets_it(tmp_path, server):
    assert fetch(tmp_path, [f"{server.url}/busy/1"], {"per_host": 1}).stored == 1
    assert server.times[1] - server.times[0] >= 0.95


def test_without_a_network_it_gives_up(tmp_path):
    with socket.socket() as bound:  # taken, and nobody listens
        bound.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{bound.getsockname()[1]}/{i}.jpg" for i in range(40)]
        with pytest.raises(DataError, match="the last 10 pictures all failed, is the network there"):
            fetch(tmp_path, urls, {"attempts": 1}, give_up=10)


def test_each_url_once_and_what_else_stands_in_the_records(tmp_path, server):
    path = tmp_path / "rows.jsonl"
    a, b = f"{server.url}/ok/1.jpg", f"{server.url}/ok/2.jpg"
    rows = [
        {"doc_image": a, "more": [b, a, None, ""]}, {"doc_image": f" {a} "}, {"doc_image": "images/x.jpg"},
        {"doc_image": 7}, {}, {"doc_image": "ftp://host/x.jpg"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n{broken\n")
    file = UrlFile(path, ["doc_image", "more"])
    done = asyncio.run(
        fetch_all(
            Plan(file, tmp_path / "store", StoreSettings(), Limits(**QUICK), Part()),
            asyncio.Event(),
        )
    )
    assert (done.stored, done.failed) == (2, {"forbidden URL": 1})
    assert server.asked == {"/ok/1.jpg": 1, "/ok/2.jpg": 1}
    assert file.counts == {"records": 6, "bad_records": 1, "not_urls": 2}
    with pytest.raises(DataError, match=r"no record has a URL under --keys=image .*'doc_image', 'more'"):
        UrlFile(path, ["image"]).scan()


def test_machines_share_the_work(tmp_path, server):
    urls = [f"{server.url}/ok/{i}.jpg" for i in range(20)]
    counts = [fetch(tmp_path, urls, part=Part(number, 2)).stored for number in range(2)]
    assert sum(counts) == len(Store(tmp_path / "store")) == 20
    assert min(counts) > 0
    assert set(server.asked.values()) == {1}


def test_mbe_reads_what_was_downloaded(tmp_path, server, moon_data):
    """The real rows with URLs in the place of paths."""
    rows = [json.loads(line) for line in (moon_data / "grocery.train.mbe.jsonl").read_text().splitlines()[:12]]
    for number, row in enumerate(rows):
        row |= {"doc_image": f"{server.url}/ok/{number % 5}.jpg", "query_image": f"{server.url}/ok/{9 + number}.jpg"}
        row["neg_image"] = f"{server.url}/status/404"
    path = tmp_path / "train.mbe.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, "-m", "moon_jax.download", f"--input={path}", "--keys=doc_image,query_image,neg_image",
        f"--output={tmp_path / 'store'}", "--allow_private", "--rate=1000",
    ]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "17 pictures stored, 0 were there, 0 known to be dead, 1 failed" in said
    assert "1 HTTP 404" in said
    config = DataConfig(path=str(path), format="mbe", unseen_share=0.0, image_store=str(tmp_path / "store"))
    dataset = sources.read(config)
    assert len(dataset.train) == 12
    for number, triplet in enumerate(dataset.train):
        assert isinstance(triplet.query.image.path, PackedImage)
        assert triplet.query.image.path.read() == picture(9 + number)
        assert picture_files.load(triplet.positive.images[0].path).size[1] == 40
        with pytest.raises(picture_files.ImageError, match="status/404: no such picture"):
            picture_files.load(triplet.negative.images[0].path)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_stopped_program_goes_on(tmp_path, server, name):
    urls = [f"{server.url}/late/{i}.jpg" for i in range(80)]
    given = plan(tmp_path, urls)
    command = [
        sys.executable, "-m", "moon_jax.download", f"--input={given.input.path}", f"--output={given.folder}",
        "--allow_private", "--rate=50", "--shard_pictures=8",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(shard_names(given.folder)) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, getattr(signal, name))
    asked = time.monotonic()
    out, errors = process.communicate()
    before = sum(server.asked.values())
    assert 24 <= before < 80
    if name != "SIGKILL":
        assert time.monotonic() - asked < 2  # the others of the 80 would take longer
        assert process.returncode == 0, errors
        assert "stopped by a signal; the same command goes on" in out
        assert len(Store(given.folder)) == before  # nothing that was asked for is lost
    done = fetch(tmp_path, urls)
    assert done.there_before == 8 * (before // 8) if name == "SIGKILL" else before
    assert done.there_before + done.stored == 80
    for number, url in enumerate(urls):
        assert stored(tmp_path, url) == picture(number)
    assert not list(given.folder.glob(".*unfinished*"))


def test_mistakes_are_one_plain_message(tmp_path):
    def command(**given):
        download.FLAGS.parse(output=tmp_path / "store", **given)
        download.main(["download"])

    with pytest.raises(SystemExit, match="DataError: --input: there is no file"):
        command(input=tmp_path / "none.jsonl")
    with pytest.raises(SystemExit, match="limits must be positive"):
        command(input=tmp_path / "none.jsonl", rate=0)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(SystemExit, match=r"no record has a URL under --keys=query.image,.* they have the keys 'a'"):
        command(input=tmp_path / "rows.jsonl", rate=10)
