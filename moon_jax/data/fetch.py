"""Fetching one picture from a stranger's server, within limits of size, time, redirects and addresses."""

import asyncio
import collections
import dataclasses
import email.utils
import errno
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

import aiohttp
import yarl

from moon_jax.data.fetch_address import public_socket, url_problem
from moon_jax.data.fetch_hosts import Hosts
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import DataError

T = TypeVar("T")
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK_BYTES = 65_536


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server may cost, and how it is spared."""

    max_bytes: int = 20_000_000  # of one picture
    timeout_seconds: float = 30.0  # of one request, from the connection to the last byte
    redirects: int = 5
    attempts: int = 4
    backoff_seconds: float = 1.0  # before the second attempt, doubled before each further one
    connections: int = 64
    per_host: int = 4
    rate: float = 10.0  # requests a second to one host
    allow_private: bool = False
    user_agent: str = "moon_jax (fetching pictures of a published data set)"

    def __post_init__(self):
        least = min(self.max_bytes, self.attempts, self.connections, self.per_host)
        if least < 1 or self.timeout_seconds <= 0 or self.rate <= 0 or self.redirects < 0 or self.backoff_seconds < 0:
            raise DataError(f"limits must be positive (redirects and backoff_seconds may be 0): {self}")


class FetchError(Exception):
    """A picture that was not fetched: `kind` for counting, the message for people, and whether to ask again."""

    def __init__(self, kind: str, message: str = "", *, again: bool = False):
        super().__init__(message or kind)
        self.kind, self.again = kind, again


class Fetcher:
    """Fetches pictures over shared connections; an asynchronous context."""

    def __init__(self, limits: Limits):
        self.limits, self.hosts = limits, Hosts(limits.connections, limits.per_host, limits.rate)
        self.counts: collections.Counter[str] = collections.Counter()
        self.asking: set[asyncio.Task | None] = set()  # those whose turn it is

    async def __aenter__(self) -> Self:
        # One address after the other, so that an error says whether it was forbidden. No proxy and no cookies: the
        # environment's proxy would be connected to instead of the address that is checked.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                happy_eyeballs_delay=None,
                ttl_dns_cache=300,
                socket_factory=None if self.limits.allow_private else public_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self.limits.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),  # ours is around the whole request
            auto_decompress=False,  # a small body could unpack to any size
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    async def fetch(self, url: str, use: Callable[[bytes], Awaitable[T]]) -> T:
        """Returns what `use` makes of the picture at a URL, asking again after errors that may pass.

        `use` runs while the connection is counted, so that no more pictures are in memory than there are connections.

        Raises:
          FetchError: why there is none.
        """
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return await self._follow(url, use)
            except FetchError as error:
                if not error.again or attempt == self.limits.attempts:
                    raise
            except Exception as error:  # one picture must not end the others
                raise FetchError("bad answer", repr(error)[:300], again=True) from error
            self.counts["retries"] += 1
            await asyncio.sleep(self.limits.backoff_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        raise AssertionError("not reached")

    async def _follow(self, url: str, use: Callable[[bytes], Awaitable[T]]) -> T:
        for _ in range(self.limits.redirects + 1):
            if problem := url_problem(url):
                raise FetchError("forbidden URL", f"{url[:200]}: {problem}")
            parsed = yarl.URL(url)
            async with self.hosts.turn(f"{parsed.host}:{parsed.port}"):
                self.asking.add(asyncio.current_task())
                try:
                    found = await self._ask(parsed)
                    if not isinstance(found, yarl.URL):
                        return await self._used(*found, use)
                finally:
                    self.asking.discard(asyncio.current_task())
            url = str(found)
            self.counts["redirects"] += 1
        raise FetchError("too many redirects", f"more than {self.limits.redirects} redirects")

    async def _used(self, content: bytes, whole: bool, use: Callable[[bytes], Awaitable[T]]) -> T:
        self.counts["bytes"] += len(content)
        try:
            return await use(content)
        except ImageError as error:
            raise FetchError("not a picture", str(error), again=not whole) from error

    async def _ask(self, url: yarl.URL) -> tuple[bytes, bool] | yarl.URL:
        """Returns (body, whether the server has said that this is all of it), or where the server points instead."""
        self.counts["requests"] += 1
        try:
            async with (
                asyncio.timeout(self.limits.timeout_seconds),
                self._session.get(url, allow_redirects=False) as response,
            ):
                return await self._read(url, response)
        except TimeoutError as error:
            raise FetchError("timeout", f"not done after {self.limits.timeout_seconds:g} s", again=True) from error
        except aiohttp.ClientSSLError as error:  # before its base, as its errno 1 is no EPERM
            passing = not isinstance(error, aiohttp.ClientConnectorCertificateError)
            raise FetchError("no secure connection", str(error)[:300], again=passing) from error
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno == errno.EPERM:
                raise FetchError("forbidden address", str(error.os_error)) from error
            raise FetchError("no connection", str(error), again=True) from error
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise FetchError("broke off", f"the server broke off: {error}", again=True) from error
        except UnicodeError as error:  # a host name that has no form on the wire
            raise FetchError("forbidden URL", f"{url}: {error}"[:300]) from error
        except aiohttp.ClientError as error:
            raise FetchError("bad answer", repr(error)[:300], again=True) from error

    async def _read(self, url: yarl.URL, response: aiohttp.ClientResponse) -> tuple[bytes, bool] | yarl.URL:
        status, headers = response.status, response.headers
        if status in _REDIRECTS and "Location" in headers:
            try:
                return url.join(yarl.URL(headers["Location"]))
            except ValueError as error:
                raise FetchError("bad answer", f"redirects to no URL: {error}") from error
        if status != 200:
            if status in (429, 503):
                self.hosts.pause(f"{url.host}:{url.port}", _seconds(headers.get("Retry-After", "")))
            raise FetchError(f"HTTP {status}", again=status in _AGAIN)
        if response.content_type.startswith("text/"):
            raise FetchError("not a picture", f"the server sends {response.content_type}")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError("bad answer", f"the body is encoded as {headers['Content-Encoding'][:50]}")
        most, body = self.limits.max_bytes, bytearray()
        if (response.content_length or 0) > most:
            raise FetchError("too large", f"{response.content_length:,} bytes, more than the limit of {most:,}")
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > most:
                raise FetchError("too large", f"more than the limit of {most:,} bytes")
        if not body:
            raise FetchError("empty", "the body is empty", again=True)
        return bytes(body), response.content_length is not None or "Transfer-Encoding" in headers


def _seconds(retry_after: str) -> float:
    """Returns how long a server wants to be left alone: it says seconds or a date."""
    try:
        return float(retry_after) if retry_after.strip().isdigit() else _until(retry_after)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
