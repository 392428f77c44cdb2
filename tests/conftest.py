import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

# Tests of Ctrl-C need it heard, by children too, and a shell's job in the background is started without.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def variables_of_a_command():
    """What a command sets in its own process is gone after the test: another would open the study of the last one."""
    names = ("DAGSTER_HOME", "HARDMOE_STUDY", "HARDMOE_SHARE", "HARDMOE_WORKERS")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """A store with two mixtures (helpers/two_mixtures.py): to be copied, not changed."""
    from helpers.two_mixtures import two_mixtures

    root = tmp_path_factory.mktemp("both") / "store"
    two_mixtures(root)
    return root


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Three shards and three experts, made up to the bundle: to be copied, not changed."""
    from helpers.growing import add_shard, growing_study, make

    folder = tmp_path_factory.mktemp("three")
    for number in range(3):
        add_shard(folder / "source", number)
    make(growing_study(folder / "source"), folder / "store")
    return folder


@pytest.fixture
def study_of(three, tmp_path):
    """Of a copy of `three`, to be changed: (study, root)."""
    from helpers.growing import growing_study

    shutil.copytree(three, tmp_path / "copy")
    return lambda **more: (growing_study(tmp_path / "copy" / "source", **more), tmp_path / "copy" / "store")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A study made up to its partition by a plain script: Dagster knows nothing of it. To be copied, not changed."""
    from helpers.partitioned import up_to_the_partition

    return up_to_the_partition(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def file(prepared, tmp_path, monkeypatch):
    """The study file of a copy of `prepared`, to be changed."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("HARDMOE_STUDY", "")
    shutil.copytree(prepared.parent, tmp_path / "study")
    return tmp_path / "study" / "study.toml"


@pytest.fixture
def started():
    """Starts the command in a process of its own, in a process group of its own."""
    processes = []

    def start(*arguments, **more):
        environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")} | more
        command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory):
    """The root of a whole graph, made in this process with one thread: to be copied, not changed."""
    from helpers.faulty import finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_THREADS", "1")
        return finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMOE_THREADS", "1")
        yield


@pytest.fixture
def copied(finished_store, tmp_path):
    """The study of a copy of `finished_store`, to be changed."""
    from helpers.kills import study
    from moe_core.workspace import open_study

    shutil.copytree(finished_store, tmp_path / "copy")
    return open_study(study(), tmp_path / "copy")


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory):
    """A bundle of drawn networks with two experts: to be copied, not changed."""
    from helpers.bundles import bundle_at, random_parts

    root = tmp_path_factory.mktemp("whole")
    return bundle_at(root / "bundle", random_parts(root, 0, count=2))


@pytest.fixture
def bundle_folder(whole_bundle, tmp_path):
    """A copy of `whole_bundle`, to be changed."""
    return shutil.copytree(whole_bundle, tmp_path / "bundle")


@pytest.fixture
def postgres():
    """Address of a database of a server that this test starts, on a socket alone."""
    pytest.importorskip("dagster_postgres", reason="pip install 'hardmoe[postgres]'")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb") or (binaries and str(binaries[-1] / "initdb"))
    if not initdb:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    control = str(Path(initdb).with_name("pg_ctl"))
    user = {"user": "nobody", "env": {"PATH": os.environ["PATH"]}} if os.geteuid() == 0 else {}  # it refuses root
    folder = Path(tempfile.mkdtemp(prefix="hardmoe-pg-", dir="/tmp"))  # short: the name of a socket has 107 bytes
    if user:
        shutil.chown(folder, "nobody")
    quick = f"-F -c listen_addresses='' -c unix_socket_directories={folder}"
    made = [initdb, "-D", folder / "data", "-U", "hardmoe", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"]
    subprocess.run(made, check=True, capture_output=True, **user)
    started = [control, "-D", folder / "data", "-l", folder / "log", "-o", quick, "-w", "start"]
    subprocess.run(started, check=True, stdout=subprocess.DEVNULL, **user)
    yield f"postgresql+psycopg2://hardmoe@/postgres?host={folder}"
    subprocess.run([control, "-D", folder / "data", "-m", "immediate", "stop"], check=True, capture_output=True, **user)
    shutil.rmtree(folder)


SERVERS = ["seaweed", pytest.param("rgw", marks=pytest.mark.soak)]  # modules of helpers


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Starts an S3 server of a module's own when it is first asked for."""
    with ExitStack() as running:

        def serve(name):
            folder = tmp_path_factory.mktemp(name)
            return running.enter_context(importlib.import_module(f"helpers.{name}").serving(folder))

        yield functools.cache(serve)


@pytest.fixture(scope="module", params=SERVERS)
def server(request, servers):
    """A SeaweedFS of a module's own; in the soak test also a Ceph RadosGW."""
    return servers(request.param)


@pytest.fixture
def bucket(server, tmp_path):
    """A place of the test's own in the server's bucket."""
    return server.place(tmp_path)


@pytest.fixture(params=["folder", *SERVERS])
def place(request, servers, tmp_path):
    """Blobs in a folder, and in a bucket of each server."""
    from moe_core.store.blobs import Folder

    return Folder(tmp_path / "place") if request.param == "folder" else servers(request.param).place(tmp_path)


@pytest.fixture
def no_process_is_left():
    """Ends what helpers/builders.py started."""
    yield
    from helpers import builders

    builders.end_all()
