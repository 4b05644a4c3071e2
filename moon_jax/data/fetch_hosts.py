"""Politeness: how often and how many times at once a host is asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

MAX_PAUSE_SECONDS = 120.0


class Hosts:
    """Gives turns: each host has its own rate and its own few connections, all together have a limit."""

    def __init__(self, connections: int, per_host: int, rate: float):
        """Starts with nobody asked.

        Args:
          connections: at once, to all hosts.
          per_host: at once, to one host.
          rate: requests a second to one host.
        """
        self._all = asyncio.Semaphore(connections)
        self._per_host, self._interval = per_host, 1 / rate
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._next: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Waits until the host may be asked again; the connection counts until the block ends."""
        now = asyncio.get_running_loop().time
        async with self._slots.setdefault(host, asyncio.Semaphore(self._per_host)):
            while (wait := self._next.get(host, 0.0) - now()) > 0:
                await asyncio.sleep(wait)
            self._next[host] = now() + self._interval
            async with self._all:
                yield

    def pause(self, host: str, seconds: float) -> None:
        """Leaves a host alone for a while, as it has asked for."""
        until = asyncio.get_running_loop().time() + min(max(seconds, 0.0), MAX_PAUSE_SECONDS)
        self._next[host] = max(self._next.get(host, 0.0), until)
