"""The HTTP server over real sockets: clients that behave, and clients that misbehave."""

import asyncio
import socket
import threading
import time

import pytest
from shop import named

from gnn_ecommerce.serving.http_server import HttpServer, Limits
from gnn_ecommerce.serving.protocol import encode


class Running:
    "A server in a thread of its own, on a free port."

    def __init__(self, **limits):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.errors, ready = [], threading.Event()

        async def main():
            self.server = HttpServer(self.handle, Limits(**limits), failed=lambda r, e: self.errors.append(str(e)))
            await self.server.start([self.sock])
            self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await self.over.wait()
            await self.server.stop(2)

        self.thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        self.port = self.sock.getsockname()[1]
        self.thread.start()
        ready.wait()

    def handle(self, request, respond):
        if request.path == "/boom":
            raise RuntimeError("boom")
        if request.path == "/late":
            self.loop.call_soon_threadsafe(self.loop.call_later, 0.1, respond, 200, b'{"late": 1}')
        elif request.path == "/twice":
            respond(200, b'{"n": 1}')
            respond(200, b'{"n": 2}')
        elif request.path != "/never":
            respond(200, encode([request.method, request.path, request.query, len(request.body)]))

    def talk(self, *parts, wait=8.0):
        "Send bytes, part by part, and read until the connection is closed."
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            for part in parts:
                s.sendall(part)
                time.sleep(0.02 * (len(parts) > 1))  # parts arrive apart
            read = b""
            try:
                while more := s.recv(65536):
                    read += more
            except (TimeoutError, ConnectionResetError):
                pass
            return read

    def status(self, *parts):
        return int((self.talk(*parts) + b"HTTP/1.1 000").split()[1])

    def stop(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()


@pytest.fixture(scope="module")
def server():
    running = Running(receive=0.4, answer=0.4, idle=0.5, head=2000, body=5000)
    yield running
    running.stop()
    assert running.server.connections == set()


CLOSE = b"Connection: close\r\n"


def get(path, more=b""):
    return b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, more)


def post(headers, body=b""):
    return b"POST /b HTTP/1.1\r\n%b\r\n%b" % (headers, body)


def test_a_request_and_its_parts(server):
    assert server.talk(get(b"/a?k=3", CLOSE)).split(b"\r\n\r\n")[1] == b'["GET","/a","k=3",0]'


def test_a_body_may_come_in_pieces(server):
    data = post(CLOSE + b"Content-Length: 4\r\n", b"abcd")
    assert server.talk(data[:10], data[10:60], data[60:]).endswith(b'["POST","/b","",4]')


def test_a_body_may_come_in_chunks(server):
    chunks = post(CLOSE + b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    assert server.talk(chunks).endswith(b'["POST","/b","",7]')


def test_answers_leave_in_the_order_of_the_questions_and_only_once(server):
    answers = server.talk(get(b"/late") + get(b"/a") + get(b"/twice") + get(b"/c", CLOSE))
    assert [answers.count(x) for x in (b"200 OK", b'"late"', b'"/a"', b'"n": 2', b'"/c"')] == [4, 1, 1, 0, 1]
    places = [answers.index(x) for x in (b'"late"', b'"/a"', b'"n": 1', b'"/c"')]
    assert places == sorted(places)


def test_head_has_no_body(server):
    answers = server.talk(get(b"/a").replace(b"GET", b"HEAD") + get(b"/late", CLOSE))
    assert (answers.count(b"HTTP/1.1 200"), answers.count(b'"/a"')) == (2, 0)


def test_an_offer_to_upgrade_is_ignored(server):
    answers = server.talk(get(b"/a", b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + get(b"/b", CLOSE))
    assert answers.count(b"200 OK") == 2


def test_expect_continue(server):
    headers = CLOSE + b"Content-Length: 4\r\nExpect: 100-continue\r\n"
    assert b"100 Continue" in server.talk(post(headers), b"abcd")


def test_a_thousand_requests_at_once_behind_a_late_one(server):
    answers = server.talk(get(b"/late") + get(b"/a") * 1000 + get(b"/c", CLOSE))
    assert answers.count(b"200 OK") == 1002


def test_more_late_requests_than_may_wait(server):
    assert server.talk(get(b"/late") * 40 + get(b"/a", CLOSE)).count(b"200 OK") == 41


@pytest.mark.parametrize(
    "parts, status",
    named(
        {
            "no HTTP": ((b"GARBAGE\r\n\r\n",), 400),
            "TLS": ((b"\x16\x03\x01\x02\x00\x01\x00",), 400),
            "long header": ((get(b"/a", b"X: %b\r\n" % (b"x" * 3000)),), 431),
            "a header that never ends": ((b"GET /a HTTP/1.1\r\nX: ", b"x" * 1500, b"x" * 1500, b"x" * 1500), 431),
            "long address": ((get(b"/" + b"a" * 3000),), 431),
            "announced body": ((post(b"Content-Length: 6000\r\n"),), 413),
            "chunked body": ((post(b"Transfer-Encoding: chunked\r\n", b"1770\r\n" + b"x" * 6000),), 413),
            "half a body": ((post(b"Content-Length: 10\r\n", b"abc"),), 408),
            "half a head": ((b"GET /a HT",), 408),
            "no answer": ((get(b"/never"),), 504),
            "nothing": ((b"",), 0),
        }
    ),
)
def test_what_is_wrong_is_answered_and_the_connection_closed(server, parts, status):
    assert server.status(*parts) == status


def test_an_exception_in_the_handler_is_a_500_and_reported(server):
    assert server.status(get(b"/boom", CLOSE)) == 500
    assert server.errors == ["boom"]
