"""How a study is kept running: Dagster's storage in PostgreSQL, alerts, backup, several studies, many experts."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._daemon.types import DaemonHeartbeat
from PIL import Image

from assets.runs import HOST, PROCESS
from helpers.plain import make_everything
from moe_core.clustering.gate import load_gate
from moe_core.engine.context import Context
from moe_core.recipes import demo
from moe_core.settings import Alerts, Data, Network, Partition, Source, Training, dump_study, load_study
from moe_core.stages.graph import GRAPH
from moe_core.store.artifact import StageOutput
from moe_core.store.hashing import content_hash
from pipelines import instance
from pipelines.run.status import states_of

QUICK = Training(epochs=1, batch_size=32, lr=0.2, flip=False, crop=1)
GONE = "post-that-was-forgotten"


def small_study(**more):
    values = {
        "name": "tiny",
        "source": Source(format="synthetic", posts=400, shards=1),
        "data": Data(image_size=16, min_posts_per_tag=5, test=0.2, validation=0.1),
        "network": Network(widths=(4, 8), depths=(1, 1), embedding=16),
        "trunk": QUICK,
        "expert_training": QUICK,
        "partition": Partition(experts=2, pca=8),
        "evaluation": demo().evaluation.model_copy(update={"controls": False, "bootstrap": 20}),
    }
    return demo().model_copy(update=values | more)


def write(folder, study):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(dump_study(study), "utf-8")
    return folder / "study.toml"


def hardmoe(*arguments, check=True, **variables):
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "HARDMOE_STUDY")} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def opened(file):
    return Context(load_study(file), file.parent)


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


UPLOAD = """
import sys, threading
from pathlib import Path
from pipelines.instance import home
folder = home(Path(sys.argv[1]), 1)
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
        clean = {k: v for k, v in os.environ.items() if k not in (instance.NO_TELEMETRY, "BUILDKITE", "TF_BUILD")}
        clean |= {"DAGSTER_HOME": str(tmp_path / "dagster"), "NO_PROXY": "127.0.0.1"}
        clean |= {"DAGSTER_TELEMETRY_URL": f"http://127.0.0.1:{server.server_port}/"}
        done = subprocess.run([sys.executable, "-c", UPLOAD, str(tmp_path)], env=clean, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(posts) == sent


def test_a_code_server_warns_of_telemetry_that_nobody_turned_off(tmp_path):
    file = write(tmp_path / "study", small_study())
    clean = {k: v for k, v in os.environ.items() if k != instance.NO_TELEMETRY} | {"HARDMOE_STUDY": str(file)}
    code = [sys.executable, "-c", "import pipelines.definitions"]
    for said, warns in (("", True), ("telemetry: {enabled: false}", False), ("telemetry: {enabled: true}", False)):
        (tmp_path / "dagster.yaml").write_text(said)
        done = subprocess.run(code, env=clean | {"DAGSTER_HOME": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 0
        assert (f"{tmp_path}/dagster.yaml does not mention it" in done.stderr) == warns, done.stderr


@pytest.mark.slow
def test_all_of_dagster_lies_in_postgresql_where_dagster_yaml_says_so(postgres, tmp_path, monkeypatch):
    file, home = write(tmp_path / "cats", small_study()), tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: {env: HARDMOE_PG}}}\n"
        "concurrency: {pools: {granularity: run, default_limit: 2}}\ntelemetry: {enabled: false}\n"
    )
    variables = {"DAGSTER_HOME": str(home), "HARDMOE_PG": postgres}
    done = hardmoe("run", "--study", file, **variables)
    assert not (file.parent / "dagster").exists()
    assert list(home.rglob("*.db")) == []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert {state.state for state in states_of(opened(file))} == {"fresh"}
    with instance.opened() as dagster:
        runs = dagster.get_runs()
        assert f"{len(runs)} made, 0 fresh, 0 failed" in done.stdout
        assert {run.tags["hardmoe/study"] for run in runs} == {"tiny"}
        assert dagster.get_dynamic_partitions("tiny_experts") == ["e000", "e001"]
        dead = subprocess.Popen(["true"])
        dead.wait()
        tags = {PROCESS: f"12345678.{dead.pid}", HOST: socket.gethostname()}
        run = dg.DagsterRun("__ASSET_JOB", "12345678" + "0" * 24, status=dg.DagsterRunStatus.STARTED, tags=tags)
        dagster.add_run(run)
        (left,) = dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        dagster.event_log_storage.set_concurrency_slots("trainer", 1)
        assert dagster.event_log_storage.claim_concurrency_slot("trainer", left.run_id, "expert").is_claimed
        assert instance.reap(dagster) == [left.run_id]
        assert dagster.get_run_by_id(left.run_id).status == dg.DagsterRunStatus.FAILURE
        assert dagster.event_log_storage.get_concurrency_info("trainer").active_slot_count == 0
        assert instance.runs_that_say(dagster, {GONE}) == []
        dagster.report_engine_event(f"{GONE}: no_tags", dagster.get_run_by_id(left.run_id))
        assert instance.runs_that_say(dagster, {GONE}) == [left.run_id]
    write(file.parent, small_study(partition=Partition(experts=5000)))
    failed = hardmoe("run", "--study", file, "--until", "partition", check=False, **variables)
    assert "Error: partition: partition.experts = 5000, but only" in failed.stderr
    (state,) = states_of(opened(file), only="partition")
    assert (state.state, "only" in state.why) == ("failed", True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "storage: {postgres: {postgres_url: 'postgresql+psycopg2://nobody@127.0.0.1:1/none'}}\n",
            r"(?i)connection refused|pip install 'hardmoe\[postgres\]'",
        ),
        ("storage: {postgres: {postgres_url: 'postgresql://nobody@127.0.0.1:1/none'}}\n", "psycopg2|hardmoe.postgres"),
        ("storages: {}\n", "storages"),
        ("a: [\n", "dagster.yaml cannot be opened"),
    ],
)
def test_an_instance_that_cannot_be_opened_is_said_in_one_line(tmp_path, monkeypatch, text, why):
    (tmp_path / "dagster.yaml").write_text(text)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    with pytest.raises(ValueError, match=why) as error, instance.opened():
        pass
    assert "\n" not in str(error.value)
    assert f"{tmp_path}/dagster.yaml" in str(error.value)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study up to its partition, whose assets have a prefix in Dagster."""
    file = write(tmp_path_factory.mktemp("begun"), small_study(asset_prefix="cats"))
    hardmoe("run", "--study", file, "--until", "partition")
    return file


@pytest.mark.slow
def test_a_copy_of_the_root_goes_on_under_another_path(begun, tmp_path):
    shutil.copytree(begun.parent, tmp_path / "restored")
    file = tmp_path / "restored" / "study.toml"
    before = digests(begun)
    assert " 6 fresh, 0 failed" in hardmoe("run", "--study", file).stdout
    assert digests(file)[: len(before)] == before
    assert not (begun.parent / "expert").exists()


def digests(file):
    """Of what is made up to the partition."""
    work = opened(file)
    names = ("splits", "vocabulary", "trunk", "partition")
    return [work.need("posts", work.shards[0].key).content_hash, *(work.need(name).content_hash for name in names)]


@pytest.mark.slow
def test_studies_that_share_an_instance_have_runs_assets_and_keys_apart(begun, tmp_path, monkeypatch):
    root, home = tmp_path / "cats", tmp_path / "cats" / "dagster"
    shutil.copytree(begun.parent, root)
    cats = root / "study.toml"
    other = {"source": Source(format="synthetic", posts=400, shards=2), "partition": Partition(experts=1)}
    dogs = write(tmp_path / "dogs", small_study(name="dogs", asset_prefix="dogs", **other))
    assert "2 made" in hardmoe("run", "--study", dogs, "--until", "posts", DAGSTER_HOME=str(home)).stdout
    assert "6 fresh" in hardmoe("run", "--study", cats, "--until", "partition", DAGSTER_HOME=str(home)).stdout
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with instance.opened() as dagster:
        known = {key.path[0] for key in dagster.all_asset_keys()}
        assert known == {"cats", "dogs"}
        assert dagster.get_dynamic_partitions("tiny_experts") == ["e000", "e001"]
        assert dagster.get_dynamic_partitions("dogs_experts") == ["e000"]
        assert sorted(dagster.get_dynamic_partitions("dogs_shards")) == ["s0000", "s0001"]
        tags = {"hardmoe/study": "dogs", "dagster/partition": "e000"}
        expert = frozenset([dg.AssetKey(["dogs", "expert"])])
        dagster.report_run_failed(dagster.add_run(dg.DagsterRun("__ASSET_JOB", tags=tags, asset_selection=expert)))
    assert [state.state for state in states_of(opened(cats), only="expert")] == ["missing", "missing"]


TICK = """
import json, sys
import dagster as dg
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor
from pipelines.definitions import defs
from pipelines.sensors import alert

begin = RunStatusSensorCursor(record_id=0, update_timestamp="2000-01-01T00:00:00+00:00").to_json()
with dg.DagsterInstance.get() as instance:
    other = instance.add_run(dg.DagsterRun("__ASSET_JOB", tags={"hardmoe/study": "dogs"}))
    instance.report_run_failed(other)
    context = dg.build_sensor_context(instance, cursor=begin, repository_def=defs.get_repository_def())
    said = alert.evaluate_tick(context)
    print(json.dumps([reaction.error and str(reaction.error) for reaction in said.dagster_run_reactions]))
"""
NOTE = "import sys; open('alerts.jsonl', 'a').write(sys.stdin.read() + chr(10))"


@pytest.mark.slow
def test_a_failed_run_is_told_to_the_command_as_json_and_a_failing_command_fails_the_tick(begun, tmp_path):
    root = tmp_path / "cats"
    shutil.copytree(begun.parent, root)
    wrong = {"partition": Partition(experts=5000)}
    file = write(root, small_study(alerts=Alerts(command=(sys.executable, "-c", NOTE)), asset_prefix="cats", **wrong))
    assert hardmoe("run", "--study", file, "--until", "partition", check=False).returncode == 1
    (run,) = tick(file)[1]
    assert run["study"] == "tiny"
    assert (run["root"], run["assets"], run["partition"]) == (str(root), ["partition"], None)
    assert run["error"].startswith("partition.experts = 5000, but only")
    (root / "alerts.jsonl").unlink()
    write(root, small_study(alerts=Alerts(command=("/no/such; touch wicked",)), asset_prefix="cats", **wrong))
    errors, told = tick(file)
    assert "No such file or directory" in str(errors)
    assert told == []
    assert not list(tmp_path.rglob("wicked"))


def tick(file):
    """Errors and what the command was told, of one tick of the sensor that begins with the first run."""
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    done = subprocess.run([sys.executable, "-c", TICK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = file.parent / "alerts.jsonl"
    lines = told.read_text().splitlines() if told.exists() else []
    return json.loads(done.stdout), [json.loads(line) for line in lines]


def test_a_taken_port_and_a_second_ui_are_said_in_one_line(tmp_path):
    file = write(tmp_path / "cats", small_study())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = hardmoe("ui", "--study", file, "--port", port, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} of 127.0.0.1 cannot be used" in done.stderr
    assert done.stderr.count("\n") == 1


HOLD = """
import sys
from pipelines.instance import hold_ui
hold_ui(int(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_one_instance_has_one_ui_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"runs on .* already: http://127.0.0.1:{port}, process {holder.pid}"):
            instance.hold_ui(port)
        holder.communicate("\n")
    os.close(instance.hold_ui(port))


def test_a_daemon_that_reports_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(instance.home(tmp_path, 1)))
    assert instance.daemon_reported() is None
    for seconds, noticed in ((3600, False), (10, True)):
        with instance.opened() as dagster:
            dagster.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds, "SENSOR", "elsewhere", []))
        assert (instance.daemon_reported() is not None) == noticed


STALENESS = """
import sys

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipelines.definitions import defs

with dg.DagsterInstance.get() as instance:
    resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), LoadingContextForTest(instance))
    places = [place.partition(":") for place in sys.argv[1:] or ("shared_decoder", "mixture", "evaluation")]
    print(*(resolver.get_status(dg.AssetKey(name), key or None).value for name, _, key in places))
"""


@pytest.mark.soak
def test_one_changed_expert_of_120_makes_decoder_mixture_and_evaluation_stale(tmp_path, monkeypatch):
    """Dagster itself looks at no more than 100 partitions of what an asset depends on."""
    many = Partition(experts=120, pca=8)
    study = small_study(source=Source(format="synthetic", posts=1500, shards=1), partition=many)
    file = write(tmp_path, study)
    make_everything(file)
    monkeypatch.setenv("DAGSTER_HOME", str(instance.home(tmp_path, 2)))
    work = opened(file)
    recorded = ("posts", "splits", "vocabulary", "trunk", "trunk_features", "expert")
    with instance.opened() as dagster:
        for name in recorded:
            for key in GRAPH[name].keys_of(work):
                tags = {DATA_VERSION_TAG: work.version(name, key)}
                dagster.report_runless_asset_event(dg.AssetMaterialization(name, partition=key, tags=tags))
    run = ("run", "--study", file, "--workers", 2, "--until")
    dagster_home = {"DAGSTER_HOME": str(tmp_path / "dagster")}
    assert "0 made, 129 fresh, 0 failed" in hardmoe(*run, "evaluation", **dagster_home).stdout
    assert staleness(file) == "FRESH FRESH FRESH"
    write(tmp_path, study.model_copy(update={"partition": many.model_copy(update={"iterations": many.iterations + 1})}))
    repartition_one(work, opened(file), "e007")
    found = {(state.asset, state.key): (state.state, state.why) for state in states_of(opened(file))}
    old = {place: why for place, (state, why) in found.items() if state != "fresh"}
    assert old.pop(("expert", "e007")) == "its posts changed"
    assert old.pop(("shared_decoder", None)) == "expert e007 retrained"
    assert {name for name, _ in old} == {"mixture", "published", "evaluation", "embeddings", "report"}
    assert "0 made, 6 fresh, 0 failed" in hardmoe(*run, "partition", **dagster_home).stdout
    assert staleness(file) == "STALE STALE FRESH"  # Dagster looks no further than to what an asset reads itself
    assert "3 made, 125 fresh, 0 failed" in hardmoe(*run, "mixture", **dagster_home).stdout
    assert staleness(file) == "FRESH FRESH STALE"
    assert "1 made, 128 fresh, 0 failed" in hardmoe(*run, "evaluation", **dagster_home).stdout
    assert {state.state for state in states_of(opened(file), only="expert")} == {"fresh"}
    assert staleness(file) == "FRESH FRESH FRESH"


@pytest.mark.soak
def test_eight_experts_become_twelve_and_eight_again(tmp_path):
    """By the commands, with controls, a decoder that is refitted and Dagster's own staleness at each step."""
    file = write(
        tmp_path,
        small_study(
            source=Source(format="synthetic", posts=3000, shards=2),
            partition=Partition(experts=8, pca=8),
            evaluation=demo().evaluation.model_copy(update={"bootstrap": 20}),
        ),
    )
    hardmoe("run", "--study", file, "--workers", 2)
    first = opened(file)
    assert first.experts == [f"e{k:03d}" for k in range(8)]
    weights = {key: first.need("expert", key).path for key in first.experts}
    after = ("shared_decoder", "mixture", "published", "evaluation", "embeddings", "report")
    bundles, ever = {first.version("mixture"): first.experts}, set(first.experts)
    for count in (12, 8):
        before = opened(file)
        planned = hardmoe("run", "--study", file, "--workers", 2, "--set", f"partition.experts={count}", "--dry-run")
        assert "partition" in planned.stdout
        assert opened(file).experts == before.experts, "a dry run changed something"
        hardmoe("run", "--study", file, "--workers", 2, "--set", f"partition.experts={count}")
        now = opened(file)
        said = now.need("partition").metadata
        kept, new = set(now.experts) & set(before.experts), set(now.experts) - set(before.experts)
        assert len(now.experts) == count
        assert len(new) == max(0, count - len(before.experts))
        assert not new & ever, "a key was used twice"
        assert new <= set(said["trained_again"])
        for key in kept - set(said["trained_again"]):
            assert now.need("expert", key).path == before.need("expert", key).path
        ever |= new
        assert {state.state for state in states_of(now)} == {"fresh"}
        experts = [f"{name}:{key}" for name in ("expert", "random_expert", "separate_expert") for key in now.experts]
        assert set(staleness(file, *experts, *after).split()) == {"FRESH"}
        assert set(now.need("shared_decoder").inputs) >= set(now.experts)
        table = json.loads(now.need("evaluation").file("table.json").read_text())
        assert {row["expert"] for row in table["per_expert"]} == set(now.experts)
        bundles[now.version("mixture")] = now.experts
        assert "0 made" in hardmoe("run", "--study", file, "--workers", 2).stdout
    assert all(path.exists() for path in weights.values())
    assert hardmoe("verify", "--study", file).returncode == 0
    image = tmp_path / "one.png"
    Image.new("RGB", (40, 40), (200, 60, 20)).save(image)
    for version, keys in bundles.items():
        bundle = first.store.folder("mixture", None) / version
        (answer,) = json.loads(hardmoe("predict", "--bundle", bundle, image, "--json").stdout)
        assert answer["expert"] in keys


def repartition_one(old, new, key):
    """A partition that differs from the one before in the posts of one expert."""
    before = old.need("partition")

    def write(folder):
        shutil.copytree(before.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
        gate, about = load_gate(before.file("gate.safetensors"))
        gate.save(folder / "gate.safetensors", about | {"version": new.version("partition")})
        members = {**before.metadata["members"], key: "another cluster"}
        return StageOutput(before.metadata | {"members": members}, content={"members": content_hash(members)})

    new.store.make(new.plan("partition"), write)


def staleness(file, *places):
    """Dagster's own word on each place, ASSET or ASSET:KEY."""
    environment = os.environ | {"HARDMOE_STUDY": str(file), "DAGSTER_HOME": str(file.parent / "dagster")}
    done = subprocess.run([sys.executable, "-c", STALENESS, *places], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
