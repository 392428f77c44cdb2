"""The page of a mixture, served from a thread of this process, and what it is asked."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlencode

import uvicorn

from helpers.service import SECONDS, until
from moe_core.service import look
from moe_core.service.app import create_app
from moe_core.service.limits import Limits
from moe_core.service.looking import Looking
from moe_core.service.service import Service


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    content: bytes

    @property
    def text(self):
        return self.content.decode()

    def json(self):
        return json.loads(self.content)


class Page:
    """Where it answers."""

    def __init__(self, port):
        self.port, self.address = port, f"http://127.0.0.1:{port}"

    def get(self, path, headers=(), **query):
        return self.ask("GET", path, None, headers, query)

    def post(self, path, body, **query):
        return self.ask("POST", path, body, (), query)

    def ask(self, method, path, body, headers, query):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            path = f"{path}?{urlencode(query, doseq=True)}" if query else path
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


@contextmanager
def page_of(source, open_posts=None, token=None):
    service = Service(source, Limits())
    app = create_app(service, token=token, routers=[look.router])
    app.state.looking = Looking(lambda: service.following.now, open_posts, "tiny" if open_posts else None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Page(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
