"""A headless Chromium that tests drive through its DevTools protocol, over a pipe: no port and no package needed."""

import fcntl
import json
import os
import pathlib
import select
import shutil
import signal
import time
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--remote-debugging-pipe",
)
SECONDS = 60  # for any one answer: a browser that hangs fails its test
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " "), "Escape": (27, ""), "ArrowRight": (39, "")}


def found() -> str | None:
    """Returns the browser: the one that the environment variable CHROMIUM names, else the first installed one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Seen(NamedTuple):
    """What a page did since it was opened."""

    requests: list[str]  # URLs other than the page itself and data in it
    errors: list[str]  # on the console, and scripts that failed or were refused
    dialogs: list[str]  # what alert() and the like said


class Chromium:
    """A running browser; `close` ends it."""

    def __init__(self, program: str, profile: pathlib.Path):
        """Starts the browser.

        Args:
            program: name or path.
            profile: an empty folder, for all that it writes.
        """
        (theirs_in, ours_out), (ours_in, theirs_out) = _pipe(), _pipe()
        self._in, self._out, self._left, self._number = ours_in, ours_out, b"", 0
        self.events: list[dict[str, Any]] = []
        actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
        with open(profile / "log", "wb") as log:
            actions += [(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)]
            command = [program, *FLAGS, f"--user-data-dir={profile / 'data'}", "about:blank"]
            home = {**os.environ, "HOME": str(profile)}
            self._process = os.posix_spawnp(program, command, home, file_actions=actions, setpgroup=0)
        os.close(theirs_in)
        os.close(theirs_out)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Returns the answer to a command of the protocol; events that come before it are kept.

        Raises:
            RuntimeError: the browser refuses it, does not answer, or has ended.
        """
        number = self._send(method, session, params)
        end = time.monotonic() + SECONDS
        while True:
            message = self._next(end)
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def _send(self, method: str, session: str | None, params: dict[str, Any]) -> int:
        """Returns the number of the command, which its answer has too."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = json.dumps(said).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        return self._number

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError(f"the browser said nothing for {SECONDS} s")
            data = os.read(self._in, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self._left += data
        data, _, self._left = self._left.partition(b"\0")
        message = json.loads(data)
        if "method" in message:
            self.events.append(message)
        if message.get("method") == "Page.javascriptDialogOpening":  # the page stands still until it is answered
            self._send("Page.handleJavaScriptDialog", message["sessionId"], {"accept": True})
        return message

    def wait(self, session: str, name: str) -> None:
        """Returns when a tab has had an event."""
        end = time.monotonic() + SECONDS
        while not any(e.get("sessionId") == session and e.get("method") == name for e in self.events):
            self._next(end)

    def close(self) -> None:
        """Ends the browser and its helpers."""
        try:
            self.call("Browser.close")
        except RuntimeError:
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)


class Tab:
    """A file, opened in a window of the given size."""

    def __init__(self, browser: Chromium, path: pathlib.Path, width_px: int, height_px: int = 844):
        self._browser, self._url = browser, path.resolve().as_uri()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        size = dict(width=width_px, height=height_px, deviceScaleFactor=1, mobile=width_px < 700)
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=self._url)
        browser.wait(self._session, "Page.loadEventFired")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def ask(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript, as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, shift: bool = False) -> None:
        """Presses and lets go of a key as a person does: what has the focus receives it."""
        code, text = KEYS[key]
        said = dict(code=key, key=" " if key == "Space" else key, windowsVirtualKeyCode=code, modifiers=8 * shift)
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **said)
        self._call("Input.dispatchKeyEvent", type="keyUp", **said)

    def seen(self) -> Seen:
        """Returns what the page has done so far."""
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        seen = Seen([], [], [])
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            method, said = event["method"], event["params"]
            if method == "Network.requestWillBeSent" and not said["request"]["url"].startswith((self._url, "data:")):
                seen.requests.append(said["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                seen.errors.append(json.dumps(said["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                seen.errors.append(json.dumps(said["args"]))
            elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                seen.errors.append(said["entry"]["text"])
            elif method == "Page.javascriptDialogOpening":
                seen.dialogs.append(said["message"])
        return seen


def _pipe() -> tuple[int, int]:
    """Returns the ends of a pipe as descriptors that are neither 3 nor 4, which the browser's own become."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved
