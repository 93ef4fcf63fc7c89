"""A proxy in front of a database server that counts round trips."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from socket import create_connection
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import cast

from sqlalchemy import make_url


class Proxy(ThreadingTCPServer):
    """Passes data on between clients and a server.

    Everything that a client sends before the server answers is one round trip.
    """

    daemon_threads = True
    connections = round_trips = 0
    url: str
    target: tuple[str | None, int | None]


class Connection(BaseRequestHandler):
    """One client's connection through the proxy, in a thread of its own."""

    def handle(self) -> None:
        client, proxy = self.request, cast(Proxy, self.server)
        proxy.connections += 1
        # A client that is killed resets its connection.
        with suppress(ConnectionError), create_connection(proxy.target) as server:
            others = {client: server, server: client}
            last = server
            while True:
                for end in select(others, [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    if end is client and last is server:
                        proxy.round_trips += 1
                    last = end
                    others[end].sendall(data)


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """Start a proxy to the server of this URL. Its own URL is `proxy.url`."""
    address = make_url(url)
    with Proxy(("127.0.0.1", 0), Connection) as proxy:
        proxy.target = (address.host, address.port)
        address = address.set(host="127.0.0.1", port=proxy.server_address[1])
        proxy.url = address.render_as_string(hide_password=False)
        Thread(target=proxy.serve_forever, args=[0.01]).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
