"""`hardmoe serve` in a process of its own, and what it is asked."""

import http.client
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import numpy as np
from PIL import Image

SECONDS = 120


def png(pixels=None, side=40, seed=0):
    """A file of pixels (H, W, 3), or of noise."""
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def form(files):
    """(body, headers) of a form with (name, bytes) of each file."""
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


def npy(pixels_NHWC):
    """(body, headers) of an array."""
    file = io.BytesIO()
    np.save(file, pixels_NHWC)
    return file.getvalue(), {"Content-Type": "application/x-npy"}


class Server:
    """The command, once it answers."""

    def __init__(self, *arguments, **variables):
        command = [sys.executable, "-m", "pipelines.cli.main", "serve", "--port", "0", *map(str, arguments)]
        environment = {name: value for name, value in os.environ.items() if name != "HARDMOE_TOKEN"} | variables
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `kill`
        pipes = {"stdout": subprocess.PIPE, "stderr": self._log}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        first = self.process.stdout.readline()
        found = re.search(r"http://[^ ]*:(\d+) ", first)
        assert found, first + self.log()
        self.port = int(found[1])

    def log(self):
        """What it wrote to standard error."""
        self._log.seek(0)
        return self._log.read()

    def ask(self, method, path, body=None, headers=(), host="127.0.0.1"):
        """(status, document or text, headers) of the answer to one request."""
        connection = http.client.HTTPConnection(host, self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return answer.status, content, answer.headers
        finally:
            connection.close()

    def predict(self, body, headers=(), query=""):
        return self.ask("POST", f"/predict{query}", body, headers)

    def metric(self, name):
        """The value of a metric, 0 for one that is not there."""
        text = self.ask("GET", "/metrics")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{re.escape(name)}[ {{]", line))

    def version(self):
        """Of the mixture that answers."""
        return self.ask("GET", "/readyz")[1]["mixture"]

    def kill(self):
        """Ends it at once."""
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def memory(self):
        """Bytes that the process holds now."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self):
        """The exit code after SIGTERM."""
        self.process.terminate()
        self.process.communicate(timeout=SECONDS)
        return self.process.returncode


@contextmanager
def serving(*arguments, **variables):
    """`hardmoe serve`, ended with the block; nothing that is a bug was written."""
    server = Server(*arguments, **variables)
    try:
        yield server
        assert server.end() == 0, server.log()
        assert "Traceback" not in server.log(), server.log()
    finally:
        server.kill()


def until(true, seconds=SECONDS):
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
