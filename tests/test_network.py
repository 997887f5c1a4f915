"""The tests reach no network: conftest.py sees to it, and these tests see that it does."""

import socket
import threading
import urllib.request
from collections.abc import Callable
from urllib.error import URLError

import pytest

from conftest import NetworkForbidden, is_loopback

OUTSIDE = ("192.0.2.1", 80)  # set aside for documentation (RFC 5737): nobody is there


@pytest.mark.parametrize(
    "host", [None, "", "localhost", b"localhost", "127.0.0.1", "127.8.8.8", "::1"]
)
def test_loopback_is_recognised(host: object) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "10.0.0.1", "0.0.0.0"])
def test_everything_else_is_outside(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.socket().connect(OUTSIDE),
        lambda: socket.socket().connect_ex(OUTSIDE),
        lambda: socket.create_connection(OUTSIDE),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", OUTSIDE),
        lambda: socket.getaddrinfo(*OUTSIDE),
    ],
    ids=["connect", "connect_ex", "create_connection", "sendto", "getaddrinfo"],
)
def test_outside_is_forbidden(reach: Callable[[], object]) -> None:
    with pytest.raises(NetworkForbidden, match=r"192\.0\.2\.1") as raised:
        reach()
    assert raised.value.host == OUTSIDE[0]


def test_libraries_see_an_ordinary_failure() -> None:
    with pytest.raises(URLError) as raised:
        urllib.request.urlopen("http://example.org")
    assert isinstance(raised.value.reason, NetworkForbidden)


def test_loopback_works() -> None:
    with socket.create_server(("localhost", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            assert client.recv(5) == b"hello"
        thread.join()
