"""Dagster's telemetry is off unless the user's dagster.yaml turns it on."""

import http.server
import os
import subprocess
import sys
import threading

import pytest

from helpers.command import write
from helpers.without_controls import quick_study
from pipelines.instance.home import NO_TELEMETRY

UPLOAD = """
import sys, threading
from pathlib import Path
from pipelines.instance.home import prepare_home
folder = prepare_home(Path(sys.argv[1]), 1)
(folder / "logs").mkdir()
(folder / "logs" / "event.log").write_text("{}")
from dagster._core.telemetry_upload import upload_logs
class Once(threading.Event):
    def wait(self, timeout=None):
        self.set()
upload_logs(Once(), raise_errors=True)
"""


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("", 0),
        ("concurrency: {runs: {max_concurrent_runs: 3}}", 0),
        ("telemetry:", 0),
        ("telemetry: {experimental: 1}", 0),
        ("telemetry: {enabled: true}", 1),  # the user's own word
    ],
)
def test_telemetry_is_sent_only_where_the_users_dagster_yaml_says_so(tmp_path, said, sent):
    """As webserver and daemon send it, by Dagster's own function, to a server of the test's."""
    posts = []

    class Listen(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posts.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text(said)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listen) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        clean = {k: v for k, v in os.environ.items() if k not in (NO_TELEMETRY, "BUILDKITE", "TF_BUILD")}
        clean |= {"DAGSTER_HOME": str(tmp_path / "dagster"), "NO_PROXY": "127.0.0.1"}
        clean |= {"DAGSTER_TELEMETRY_URL": f"http://127.0.0.1:{server.server_port}/"}
        done = subprocess.run([sys.executable, "-c", UPLOAD, str(tmp_path)], env=clean, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(posts) == sent


def test_a_code_server_warns_of_telemetry_that_nobody_turned_off(tmp_path):
    file = write(tmp_path / "study", quick_study())
    clean = {k: v for k, v in os.environ.items() if k != NO_TELEMETRY} | {"HARDMOE_STUDY": str(file)}
    code = [sys.executable, "-c", "import pipelines.definitions"]
    for said, warns in (("", True), ("telemetry: {enabled: false}", False), ("telemetry: {enabled: true}", False)):
        (tmp_path / "dagster.yaml").write_text(said)
        done = subprocess.run(code, env=clean | {"DAGSTER_HOME": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 0
        assert (f"{tmp_path}/dagster.yaml does not mention it" in done.stderr) == warns, done.stderr
