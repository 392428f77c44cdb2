"""The commands that `hardmoe ui` supervises, and the names under which it may be reached."""

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moe_core.errors import BadSetting
from moe_core.text import shown
from pipelines.aliases import shorten_temporary_folder, socket_prefix

LOCATION = "hardmoe"  # name of the code location, as in workspace.yaml: Dagster keeps the state of sensors by it
HOST_FORM = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?)(:[0-9]{1,5})?")


def checked_host(host: str) -> str:
    """A host as browsers send it: lower case, with its port unless that is the scheme's own. Raises BadSetting."""
    if not HOST_FORM.fullmatch(host.lower()):
        raise BadSetting(
            f"--allow-host {shown(host)}: wanted a name as the browser's address bar shows it, with its port where "
            "there is one, such as ui.example.org or ui.example.org:8443"
        )
    return host.lower()


def checked_prefix(prefix: str) -> str:
    """A path under which a proxy serves the UI, or "". Raises BadSetting for one that is not /name or /name/name."""
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+", prefix):
        raise BadSetting(f"--path-prefix {shown(prefix)}: wanted one such as /hardmoe")
    return prefix


@contextmanager
def dagster_commands(port: int, prefix: str, allowed: Sequence[str]) -> Iterator[tuple[list[list[str]], Path]]:
    """The commands of code server, webserver and daemon, and the socket by which the last two reach the first.

    The socket lies in a folder that no other user can enter; Dagster's own would be a port, or a file in /tmp.
    """
    shorten_temporary_folder()
    with tempfile.TemporaryDirectory(prefix=socket_prefix()) as folder:
        socket, workspace = Path(folder, "code"), Path(folder, "workspace.yaml")
        location = {"grpc_server": {"socket": str(socket), "location_name": LOCATION}}
        workspace.write_text(json.dumps({"load_from": [location]}), "utf-8")  # JSON is YAML
        python = [sys.executable, "-m"]
        code_server = [*python, "dagster", "code-server", "start", "--socket", str(socket), "--log-level", "warning"]
        code_server += ["--module-name", "pipelines.definitions", "--location-name", LOCATION]
        webserver = [*python, "pipelines.ui.webserver", "-w", str(workspace), "--port", str(port)]
        webserver += ["--path-prefix", prefix, *(word for host in allowed for word in ("--allow-host", host))]
        daemon = [*python, "dagster._daemon", "run", "-w", str(workspace), "--log-level", "warning"]
        yield [[*code_server, "--inject-env-vars-from-instance"], webserver, daemon], socket
