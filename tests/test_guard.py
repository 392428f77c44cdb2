"""What a web page, or a program that pretends to be one, can make the webserver of `hardmoe ui` do: nothing."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import dagster as dg
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from helpers.processes import until
from helpers.ui import free_port
from moe_core.store.artifact import Spec, StageOutput
from moe_core.store.store import Store
from pipelines.instance.home import SETTINGS
from pipelines.ui.commands import checked_host, checked_prefix

QUERY = "{ version }"
MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "%s", limit: 7) }'
JSON = {"Content-Type": "application/json"}
PREFIX = "/some/where"


class Server:
    """The webserver in a process of its own, on an instance without a code location."""

    def __init__(self, home, *options, study=None):
        self.home, self.port, self.keys = home, free_port(), 0
        (home / "dagster.yaml").write_text(SETTINGS.format(workers=1), "utf-8")
        (home / "workspace.yaml").write_text("load_from: []\n", "utf-8")
        command = [
            sys.executable,
            "-m",
            "pipelines.ui.webserver",
            "-w",
            home / "workspace.yaml",
            "--port",
            str(self.port),
        ]
        environment = os.environ | {"DAGSTER_HOME": str(home), "HARDMOE_STUDY": str(study or home / "study.toml")}
        with open(home / "log", "wb") as log:
            self.process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        until(self._answers, seconds=120)

    def _answers(self):
        assert self.process.poll() is None, (self.home / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def mutation(self):
        """One whose effect, if it has one, `changed` sees."""
        self.keys += 1
        return MUTATION % f"key{self.keys}"

    def changed(self):
        """Whether the mutation that was asked for last was carried out."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return f"key{self.keys}" in {limit.name for limit in instance.event_log_storage.get_pool_limits()}

    def raw(self, text):
        """Status and body of the answer to these lines."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as wire:
            wire.sendall(text.replace("\n", "\r\n").replace("PORT", str(self.port)).encode())
            wire.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: wire.recv(65536), b""))
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()

    def ask(self, method, path, body=None, **headers):
        """Status and body, as a browser or program of this machine asks, with these headers changed."""
        headers = {"Host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): said for name, said in headers.items()}
        address = f"http://127.0.0.1:{self.port}{path}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, query, **headers):
        return self.ask("POST", "/graphql", {"query": query}, **{"Content_Type": "application/json"} | headers)

    def own(self):
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("home"), "--allow-host", "ui.example.org")
    yield found
    found.process.kill()
    found.process.wait()


@pytest.mark.parametrize("name", ["127.0.0.1:PORT", "localhost:PORT", "[::1]:PORT", "ui.example.org"])
@pytest.mark.parametrize("kind", ["program", "page"])
def test_its_own_pages_and_programs_of_the_machine_query_and_change(server, name, kind):
    host = name.replace("PORT", str(server.port))
    scheme = "https" if host == "ui.example.org" else "http"
    page = {"Origin": f"{scheme}://{host}", "Sec_Fetch_Site": "same-origin"} if kind == "page" else {}
    assert server.post(QUERY, Host=host, **page)[0] == 200
    path = "/graphql?" + urllib.parse.urlencode({"query": QUERY})
    assert json.loads(server.ask("GET", path, Host=host, **page)[1])["data"]["version"]
    server.post(server.mutation(), Host=host, **page, Content_Type="application/json; charset=utf-8")
    assert server.changed()
    assert "Dagster" in server.ask("GET", "/assets", Host=host)[1]


FOREIGN = {
    "origin of another site": {"Origin": "http://evil.example"},
    "origin null": {"Origin": "null"},
    "origin of another port": {"Origin": "http://127.0.0.1:1"},
    "origin without the port": {"Origin": "http://127.0.0.1"},
    "origin of another scheme": {"Origin": "https://127.0.0.1:PORT"},
    "origin that begins as ours": {"Origin": "http://127.0.0.1:PORT.evil.example"},
    "origin that ends as an allowed one": {"Origin": "https://evil-ui.example.org"},
    "origin with a user": {"Origin": "http://127.0.0.1:PORT@evil.example"},
    "origin that is empty": {"Origin": ""},
    "cross-site": {"Sec_Fetch_Site": "cross-site"},
    "another port of this machine": {"Sec_Fetch_Site": "same-site"},
    "host of another site": {"Host": "evil.example:PORT"},
    "host of a rebound name": {"Host": "evil.example:PORT", "Origin": "http://evil.example:PORT"},
    "host of another port": {"Host": "127.0.0.1:1"},
    "host without the port": {"Host": "127.0.0.1"},
    "host in upper case": {"Host": "LOCALHOST:PORT"},
    "host with a dot": {"Host": "localhost.:PORT"},
    "host with a user": {"Host": "user@127.0.0.1:PORT"},
    "host that is any address": {"Host": "0.0.0.0:PORT"},
    "host as a number": {"Host": "2130706433:PORT"},
    "host below an allowed one": {"Host": "evil.ui.example.org"},
    "host that a proxy would say": {"Host": "evil.example", "X_Forwarded_Host": "127.0.0.1:PORT"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_other_origins_and_hosts_are_refused(server, headers):
    headers = {name: said.replace("PORT", str(server.port)) for name, said in headers.items()}
    status, why = server.post(server.mutation(), **headers)
    assert status in (403, 421)
    assert why.startswith("Refused: ")
    assert not server.changed()
    path = "/graphql?" + urllib.parse.urlencode({"query": QUERY})
    assert server.ask("GET", path, **headers)[0] in (403, 421)
    assert server.ask("GET", "/server_info", **headers)[0] in (403, 421)
    assert server.ask("OPTIONS", "/graphql", **headers, Access_Control_Request_Method="POST")[0] in (403, 421)


SIMPLE = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/graphql"]


@pytest.mark.parametrize("kind", [*SIMPLE, "text/plain; application/json", "text/plain, application/json", ""])
def test_a_post_that_needs_no_consent_changes_nothing(server, kind):
    query = server.mutation()
    for path in ("/graphql", "/graphql?" + urllib.parse.urlencode({"query": query})):
        assert server.ask("POST", path, {"query": query}, Content_Type=kind)[0] == 415
        assert server.ask("POST", path, query.encode(), Content_Type=kind)[0] == 415
    assert server.ask("POST", "/report_asset_materialization/a", {"metadata": {}}, Content_Type=kind)[0] == 415
    assert not server.changed()


@pytest.mark.parametrize("path", ["/graphql", "/%67raphql", "/graphql/", "//graphql", "/x/../graphql"])
@pytest.mark.parametrize("more", [{}, {"X_HTTP_Method_Override": "POST"} | {"Content_Type": "application/json"}])
def test_a_mutation_by_get_changes_nothing(server, path, more):
    query = server.mutation()
    for asked in (
        {"query": query},
        {"query": f"query a {QUERY} " + query.replace("mutation", "mutation b"), "operationName": "b"},
        {"query": f"# {QUERY}\n{query}"},
    ):
        status, body = server.ask("GET", f"{path}?{urllib.parse.urlencode(asked)}", **more)
        assert status == 405 or "<!DOCTYPE html>" in body  # the page of an address that it does not know
        server.ask("HEAD", f"{path}?{urllib.parse.urlencode(asked)}", **more)
    assert not server.changed()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_refused(server, method):
    assert server.ask(method, "/graphql", {"query": server.mutation()}, Content_Type="application/json")[0] == 405


@pytest.mark.parametrize("body", [[{"query": "{ version }"}], "x", None, {"query": ["{ version }"]}, {}, b"{", b"\xff"])
def test_a_body_that_is_not_one_request_is_refused(server, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, why = server.ask("POST", "/graphql", data, Content_Type="application/json")
    assert (status, why) == (400, "Refused: wanted one GraphQL request: a JSON object with a `query`\n")


LINES = {
    "no host in HTTP/1.0": "POST /graphql HTTP/1.0\nContent-Type: application/json\n",
    "no host in HTTP/1.1": "POST /graphql HTTP/1.1\nContent-Type: application/json\n",
    "two hosts": "POST /graphql HTTP/1.1\nHost: 127.0.0.1:PORT\nHost: evil.example\nContent-Type: application/json\n",
    "two origins": "POST /graphql HTTP/1.1\nHost: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:PORT\n"
    "Origin: http://evil.example\nContent-Type: application/json\n",
    "two types": "POST /graphql HTTP/1.1\nHost: 127.0.0.1:PORT\nContent-Type: text/plain\n"
    "Content-Type: application/json\n",
    "a whole address": "POST http://127.0.0.1:PORT/graphql HTTP/1.1\nHost: 127.0.0.1:PORT\n"
    "Content-Type: application/json\n",
    "a whole address of another site": "POST http://evil.example/graphql HTTP/1.1\nHost: 127.0.0.1:PORT\n"
    "Content-Type: application/json\n",
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_requests_that_no_browser_of_ours_sends_are_refused(server, lines):
    body = json.dumps({"query": server.mutation()})
    status, _ = server.raw(f"{lines}Connection: close\nContent-Length: {len(body)}\n\n{body}")
    assert 400 <= status < 500
    assert not server.changed()


def websocket(server, path="/graphql", **options):
    return connect(f"ws://127.0.0.1:{server.port}{path}", subprotocols=["graphql-ws"], **options)


def test_a_websocket_of_its_own_page_answers(server):
    with websocket(server, origin=server.own()) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(30)) == {"type": "connection_ack"}


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "http://evil.PORT"])
def test_a_websocket_of_another_page_is_refused(server, origin):
    with pytest.raises(InvalidStatus) as refused:
        websocket(server, origin=origin and origin.replace("PORT", str(server.port))).close()
    assert refused.value.response.status_code == 403


def test_a_websocket_to_another_host_is_refused(server):
    wire = socket.create_connection(("127.0.0.1", server.port))
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://evil.example:{server.port}/graphql", sock=wire, origin=f"http://evil.example:{server.port}")
    assert refused.value.response.status_code == 403


def test_a_link_from_another_site_opens_a_page_but_no_answer(server):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert server.ask("GET", "/runs", **link)[0] == 200
    assert server.ask("GET", "/runs", **link | {"Sec_Fetch_Dest": "iframe"})[0] == 403
    assert server.ask("GET", "/graphql?query={version}", **link)[0] == 403
    assert server.post(server.mutation(), **link)[0] == 403
    assert not server.changed()


def test_pages_cannot_be_framed_by_others(server):
    with urllib.request.urlopen(f"{server.own()}/runs") as answer:
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in answer.headers.get_all("Content-Security-Policy")


def test_a_refusal_quotes_what_came_on_one_line(server):
    status, why = server.ask("GET", "/", Host="<b>evil\x1b]0;x\x07" + "x" * 4000)
    assert (status, len(why.splitlines())) == (421, 1) or status == 400
    assert "\x1b" not in why
    assert len(why) < 500


def test_under_a_prefix_the_same_holds(tmp_path):
    server = Server(tmp_path, "--path-prefix", PREFIX)
    try:
        path = f"{PREFIX}/graphql"
        server.ask("POST", path, {"query": server.mutation()}, Content_Type="application/json", Origin=server.own())
        assert server.changed()
        query = server.mutation()
        assert server.ask("GET", f"{path}?" + urllib.parse.urlencode({"query": query}))[0] == 405
        assert server.ask("POST", path, {"query": query}, Content_Type="text/plain")[0] == 415
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            assert server.ask("POST", path, {"query": query}, **JSON, **headers)[0] in (403, 421)
        with pytest.raises(InvalidStatus):
            websocket(server, path, origin="http://evil.example").close()
        with websocket(server, path, origin=server.own()) as ours:
            ours.send(json.dumps({"type": "connection_init"}))
            assert json.loads(ours.recv(30)) == {"type": "connection_ack"}
        assert not server.changed()
        assert f"{PREFIX}/" in server.ask("GET", f"{PREFIX}/runs")[1]
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("host", ["ui.example.org", "UI.example.org:8443", "[::1]:3000", "10.0.0.7", "xn--a-b_c"])
def test_hosts_are_allowed_as_browsers_send_them(host):
    assert checked_host(host) == host.lower()


@pytest.mark.parametrize(
    "host",
    ["", "*", "*.example.org", "http://a", "a/b", "u@a", "a b", "a\n", "a:", "a.", "a,b", "bücher.example", "a:b"],
)
def test_what_is_no_host_is_named(host):
    with pytest.raises(ValueError, match=r"--allow-host .*: wanted a name as the browser's address bar shows it"):
        checked_host(host)


@pytest.mark.parametrize("prefix", ["x", "/", "/x/", "//x", "/x y", "/..", '/"', "/x\n"])
def test_what_is_no_prefix_is_named(prefix):
    with pytest.raises(ValueError, match=r"--path-prefix .*: wanted one such as /hardmoe"):
        checked_prefix(prefix)


@pytest.fixture(scope="module", params=["", PREFIX])
def reporting(tmp_path_factory, request):
    """The webserver of a study with two reports, the second one newer."""
    root, home = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("reporting")
    store = Store(root)
    store.layout.study_file.write_text("")
    for number, text in enumerate(("old", "new <b>")):
        plan = Spec("report", None, "1", {"number": number}, {})
        made = store.make(plan, lambda folder, text=text: _page(folder, text))
        os.utime(made.path / "artifact.json", (1000 + number, 1000 + number))
    prefix = request.param
    server = Server(home, *(["--path-prefix", prefix] if prefix else []), study=root / "study.toml")
    yield server, prefix, {a.file("report.html").read_text(): a for a in store.versions("report", None)}
    server.process.kill()
    server.process.wait()


def _page(folder, text):
    (folder / "report.html").write_text(text)
    return StageOutput({})


def test_the_report_is_served_by_its_version_and_the_newest_without(reporting):
    server, prefix, reports = reporting
    for text, artifact in reports.items():
        assert server.ask("GET", f"{prefix}/hardmoe/report/{artifact.version}") == (200, text)
    assert server.ask("GET", f"{prefix}/hardmoe/report") == (200, "new <b>")


@pytest.mark.parametrize("version", ["0" * 20, "..", ".", "%00", "%2e%2e"])
def test_a_report_that_is_not_there_is_said_in_a_line(reporting, version):
    server, prefix, _ = reporting
    status, said = server.ask("GET", f"{prefix}/hardmoe/report/{version}")
    assert (status, said.splitlines()) == (404, [said.strip()])
    assert "`hardmoe run` builds one" in said


def test_no_other_file_of_the_study_is_served(reporting):
    server, prefix, reports = reporting
    version = reports["old"].version
    for path in (
        f"{version}/artifact.json",
        f"..%2freport%2f{version}%2fartifact.json",
        f"../report/{version}/report.html",
    ):
        assert "/_next/static/" in server.ask("GET", f"{prefix}/hardmoe/report/{path}")[1]  # Dagster answers


def test_a_report_that_was_changed_on_the_disk_is_not_shown(reporting):
    server, prefix, reports = reporting
    old = reports["old"]
    (old.path / "report.html").write_text("forged")
    status, said = server.ask("GET", f"{prefix}/hardmoe/report/{old.version}")
    assert status == 500
    assert "is not the file that was written" in said
    (old.path / "report.html").write_text("old")


def test_a_page_of_another_site_cannot_read_the_report(reporting):
    server, prefix, _ = reporting
    assert server.ask("GET", f"{prefix}/hardmoe/report", Origin="http://evil.example")[0] == 403
    assert server.ask("GET", f"{prefix}/hardmoe/report", Sec_Fetch_Site="cross-site")[0] == 403


def test_the_first_page_is_that_of_the_runs(reporting):
    """Dagster's own first page, a timeline, leaves out runs that were started by command."""
    server, prefix, _ = reporting
    with urllib.request.urlopen(f"{server.own()}{prefix}/") as answer:
        assert answer.url == f"{server.own()}{prefix}/runs"
        assert b"/_next/static/" in answer.read()
