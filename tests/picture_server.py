"""A web server of bad manners: every path of it misbehaves in its own way, byte by byte, over real sockets."""

import collections
import contextlib
import io
import socket
import socketserver
import threading
import time

import numpy as np
from PIL import Image


def picture(number, kind="JPEG", side=40):
    """The bytes of a picture that is different for every number."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, side + number % 7, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def answer(body, status="200 OK", kind="image/jpeg", length=True, **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}"]
    if length is not False:
        lines.append(f"Content-Length: {len(body) if length is True else length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Runs until the `with` block ends; `asked` counts the requests of each path, `connections` all connections."""

    def __init__(self, address="127.0.0.1", family=socket.AF_INET):
        self.asked, self.connections, self.times = collections.Counter(), 0, []
        self.now = self.most = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                outer.connections += 1
                with contextlib.suppress(OSError):
                    while line := self.rfile.readline():
                        path = line.split()[1].decode()
                        while self.rfile.readline().strip():
                            pass
                        with outer._lock:
                            outer.asked[path] += 1
                            outer.times.append(time.monotonic())
                            outer.now += 1
                            outer.most = max(outer.most, outer.now)
                        try:
                            keep = outer.serve(path.strip("/").split("/"), self.wfile.write)
                        finally:
                            with outer._lock:
                                outer.now -= 1
                        if not keep:
                            return

        class Threads(socketserver.ThreadingMixIn, socketserver.TCPServer):
            address_family, daemon_threads, request_queue_size = family, True, 128
            block_on_close = False

        self._server = Threads((address, 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://{address}:{self.port}"
        self.elsewhere = ""  # where /away leads

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def serve(self, words, send):
        """Answers a request; returns whether the connection stays open."""
        name, number = words[0], int(words[-1].split(".")[0]) if words[-1].split(".")[0].isdigit() else 0
        body, times = picture(number), self.asked["/" + "/".join(words)]
        if name == "ok":
            send(answer(body))
            return True
        if name == "late":  # whole, after a while
            time.sleep(0.05)
            send(answer(body))
            return True
        if name == "plain":  # the end of the connection is the end of the picture
            send(answer(body, length=False))
        elif name == "chunked":
            parts = [body[i : i + 100] for i in range(0, len(body), 100)]
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            send(answer(chunks + b"0\r\n\r\n", length=False, Transfer_Encoding="chunked"))
            return True
        elif name == "slow":  # a byte now and then, for ever
            send(answer(b"", length=10_000))
            while True:
                send(b"x")
                time.sleep(0.05)
        elif name == "silent":
            time.sleep(20)
        elif name == "slow_header":
            send(b"HTTP/1.1 200 OK\r\n")
            for _ in range(400):
                send(b"X-More: 1\r\n")
                time.sleep(0.05)
        elif name == "cut" or (name == "cut_once" and times == 1):
            send(answer(body[: len(body) // 2], length=len(body)))
        elif name == "cut_chunks":
            send(answer(b"40\r\n" + body[:64] + b"\r\n", length=False, Transfer_Encoding="chunked"))
        elif name == "cut_plain":
            send(answer(body[: len(body) // 2], length=False))
        elif name == "understated":  # says less than it sends
            send(answer(body, length=len(body) // 2))
            return True
        elif name == "huge_said":
            send(answer(body, length=10**12))
        elif name == "endless":
            send(answer(b"", length=False))
            while True:
                send(bytes(65_536))
        elif name == "flaky" and times <= 2:
            send(answer(b"later", "503 Service Unavailable", Retry_After="0"))
            return True
        elif name == "busy" and times == 1:
            send(answer(b"later", "429 Too Many Requests", Retry_After="1"))
            return True
        elif name in ("flaky", "busy", "cut_once"):
            send(answer(body))
            return True
        elif name == "status":
            send(answer(b"" if number == 204 else b"no", f"{number} Whatever", "text/plain"))
            return True
        elif name == "hop":
            send(answer(b"", "302 Found", Location=f"/hop/{number - 1}" if number > 1 else "/ok/77.jpg"))
            return True
        elif name == "hop_endless":  # with a body that never ends
            send(answer(b"", "302 Found", length=False, Location="/ok/78.jpg"))
            while True:
                send(bytes(65_536))
        elif name == "loop":
            send(answer(b"", "301 Moved", Location="/loop"))
            return True
        elif name == "away":
            send(answer(b"", "307 Temporary Redirect", Location=self.elsewhere))
            return True
        elif name == "nowhere":
            send(answer(b"", "302 Found"))
            return True
        elif name == "html":
            send(answer(b"<html>gone</html>", kind="text/html; charset=utf-8"))
            return True
        elif name == "html_as_jpeg":
            send(answer(b"<!doctype html><title>gone</title>" * 9))
            return True
        elif name == "gzip":
            send(answer(body, Content_Encoding="gzip"))
            return True
        elif name == "empty":
            send(answer(b""))
            return True
        elif name == "bomb":  # 50,000 x 50,000 pixels by its header
            header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xc3\x50\0\0\xc3\x50\x08\x02\0\0\0"
            send(answer(header + bytes(500), kind="image/png"))
            return True
        elif name == "garbage":
            send(bytes(range(256)) * 4)
        elif name == "many_headers":
            send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(100_000)))
        elif name == "long_header":
            send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000_000)
        elif name == "hang_up":
            pass
        else:
            raise AssertionError(name)
        return False
