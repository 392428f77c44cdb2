"""The commands that `hardmoe ui` supervises."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.aliases import shorten_temporary_folder, socket_prefix

LOCATION = "hardmoe"  # name of the code location, as in workspace.yaml: Dagster keeps the state of sensors by it


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
