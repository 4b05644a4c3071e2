"""Fetches pictures that records name by URL: `python -m moon_jax.download --input=mbe.jsonl --output=STORE`.

The pictures go into a packed image store (see moon_jax.pack_images) under their URLs; training then reads them with

    --config.data.path=mbe.jsonl --config.data.format=mbe --config.data.image_store=STORE

By default the pictures of our own layout are fetched (see moon_jax.prepare: the query's, the positive's, the negative's
and those of listings), and MBE's doc_image; --keys names others, query.image being "image" inside of "query". One store
takes the pictures of several files, one after the other, and a URL that it has is not asked for again:

    for name in train test items; do python -m moon_jax.download --input=bench/$name.jsonl --output=STORE; done

No other command of this package uses the network, and this one asks only http and https URLs on public addresses: not
this machine, private or link-local networks or a cloud's metadata, also where a name or a redirect leads there (the
address is checked when the connection is made, so a proxy is not used). Every request has limits of time, size and
redirects; a host is asked at most --rate times a second, and left alone when it says so (Retry-After, up to two
minutes). What is not a picture (an HTML page named .jpg, a body that ends too early) is not stored.

Dead links are counted and listed in STORE/failed-*.jsonl, one line each with "kind", "reason" and "again". The same
command goes on where it was, also after it was killed: it asks again for those with "again": true (time-outs, errors
of the server) and not for the others (remove the list to ask for all). Ctrl-C finishes the requests that are under way;
killed, it loses at most --shard_pictures pictures.

    python -m moon_jax.download --input=train.mbe.jsonl --keys=doc_image,query_image --output=store --host=0/4
"""

import asyncio
import pathlib
import signal
import sys

from absl import app, flags

from moon_jax.command_flags import CommandFlags
from moon_jax.data.fetch import Limits
from moon_jax.data.fetch_store import Fetched, Plan, fetch_all
from moon_jax.data.fetch_urls import UrlFile
from moon_jax.data.records import DataError
from moon_jax.data.store_encode import KEEP, StoreSettings
from moon_jax.data.store_writer import SHARD_PICTURES, Part


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    except (DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


async def run() -> None:
    """Fetches what the flags say; see the module."""
    limits = Limits(
        max_bytes=MAX_BYTES.value, timeout_seconds=TIMEOUT.value, redirects=REDIRECTS.value, attempts=ATTEMPTS.value,
        backoff_seconds=BACKOFF.value, connections=CONNECTIONS.value, per_host=PER_HOST.value, rate=RATE.value,
        allow_private=ALLOW_PRIVATE.value, user_agent=USER_AGENT.value,
    )  # fmt: skip
    plan = Plan(
        UrlFile(pathlib.Path(INPUT.value).expanduser().absolute(), KEYS.value),
        pathlib.Path(OUTPUT.value).expanduser().absolute(),
        StoreSettings(MAX_PIXELS.value, QUALITY.value, KEEP_FILES.value),
        limits,
        Part.parse(HOST.value),
        THREADS.value,
        SHARD.value,
    )
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask_to_stop() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C stops at once
        print("stopping: what is under way is finished; Ctrl-C again to leave it", file=sys.stderr)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, ask_to_stop)
    print(report(await fetch_all(plan, stop), plan))


def report(done: Fetched, plan: Plan) -> str:
    """Returns what a run has done, as a few lines of text."""
    counts = plan.input.counts
    lines = [
        f"{counts['records']} records, {counts['bad_records']} of them broken, {counts['not_urls']} values no URLs",
        f"{done.stored} pictures stored, {done.there_before} were there, {done.dead_before} known to be dead, "
        f"{done.failed.total()} failed",
        *(f"  {count:>8} {kind}" for kind, count in done.failed.most_common()),
        f"{done.about.get('requests', 0)} requests, {done.about.get('retries', 0)} retries, "
        f"{done.about.get('redirects', 0)} redirects, {done.about.get('bytes', 0) / 1e6:,.1f} MB",
        f"{plan.folder}: {done.index['pictures']} pictures, {done.index['bytes'] / 1e6:,.1f} MB",
    ]
    if done.stopped:
        lines.append("stopped by a signal; the same command goes on")
    return "\n".join(lines)


FLAGS = CommandFlags(__name__)
INPUT = FLAGS.string("input", None, "file with one JSON record a line")
KEYS = FLAGS.list(
    "keys", list(UrlFile.KEYS), "keys of the records that hold a URL or a list of them; a dot leads into an object"
)
OUTPUT = FLAGS.string("output", None, "folder of the image store: made, or gone on with")
MAX_PIXELS = FLAGS.integer("max_pixels", StoreSettings.max_pixels, "larger pictures are scaled down to it")
QUALITY = FLAGS.integer("quality", StoreSettings.quality, "of the JPEG files that are written, 1..100")
KEEP_FILES = FLAGS.enum(
    "keep", StoreSettings.keep, KEEP, "which pictures of at most --max_pixels keep their bytes: all, or JPEG files only"
)
MAX_BYTES = FLAGS.integer("max_bytes", Limits.max_bytes, "larger files are not fetched")
TIMEOUT = FLAGS.float("timeout_seconds", Limits.timeout_seconds, "for a request, until the last byte is there")
REDIRECTS = FLAGS.integer("redirects", Limits.redirects, "more of them are not followed")
ATTEMPTS = FLAGS.integer("attempts", Limits.attempts, "after errors that may pass, with a growing pause between")
BACKOFF = FLAGS.float("backoff_seconds", Limits.backoff_seconds, "pause before the second attempt; then doubled")
CONNECTIONS = FLAGS.integer("connections", Limits.connections, "requests at once, to all hosts")
PER_HOST = FLAGS.integer("per_host", Limits.per_host, "requests at once to one host")
RATE = FLAGS.float("rate", Limits.rate, "requests a second to one host")
USER_AGENT = FLAGS.string("user_agent", Limits.user_agent, "who you are: give servers an address to complain to")
THREADS = FLAGS.integer("threads", 2, "that decode and encode pictures", lower_bound=1)
HOST = FLAGS.string("host", "0/1", "which share of the pictures this machine fetches, as NUMBER/OF")
SHARD = FLAGS.integer("shard_pictures", SHARD_PICTURES, "pictures of a shard", lower_bound=1)
ALLOW_PRIVATE = FLAGS.bool(
    "allow_private", False, "also fetch from private addresses and this machine: for tests, or a server of your own"
)

if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    FLAGS.run(main)
