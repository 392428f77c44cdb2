"""Leases of Dagster runs in a bucket: machines that share no folder see which runs are carried out."""

import json

import dagster as dg
import pytest

from assets.runs import HOST, PROCESS, leased
from assets.study import STUDY
from helpers import builders, seaweed
from helpers.builders import QUICK
from helpers.command import write
from helpers.with_controls import small_study
from moe_core.store.layout import NAMES
from moe_core.store.leases import holder
from moe_core.study_file import load_study
from pipelines.instance.reap import reap

RUN = "12345678-0000-0000-0000-000000000000"
ELSEWHERE = "1_90125_1f0c9a3e_0123abcd"  # a process of another machine
LEASE = str(NAMES.lease(RUN))


def add_run(instance):
    tags = {PROCESS: f"{RUN[:8]}.{ELSEWHERE}", HOST: "gpu02", STUDY: "tiny"}
    instance.add_run(dg.DagsterRun("__ASSET_JOB", RUN, status=dg.DagsterRunStatus.STARTED, tags=tags))


def test_the_run_of_another_machine_ends_once_its_beats_stop(place, tmp_path, no_process_is_left):
    def ended(wait, study="tiny"):
        return reap(dagster, tmp_path, study, place, wait=wait, pace=QUICK)

    with dg.instance_for_test() as dagster:
        add_run(dagster)
        assert ended(wait=True) == [], "without a lease nobody can tell"
        process = builders.start(place, "", hold=LEASE)
        assert process.stdout.readline() == "held\n"
        record = f"{LEASE}/000001"
        said = json.loads(place.read(record))
        place.write(record, json.dumps(said | {"process": ELSEWHERE}).encode())
        assert ended(wait=True) == [], "it beats"
        process.kill()
        process.communicate()
        assert ended(wait=False) == [], "one look tells no death"
        assert ended(wait=True, study="another") == []
        assert ended(wait=True) == [RUN]
        assert dagster.get_run_by_id(RUN).status == dg.DagsterRunStatus.FAILURE
        (event,) = dagster.all_logs(RUN, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert event.message == "process 1 of gpu02 is gone: killed, or its machine was lost"
    assert not [*place.names(LEASE)]


@pytest.mark.slow
def test_a_run_of_a_study_in_a_bucket_has_a_lease_there_while_it_is_carried_out(server, tmp_path, monkeypatch):
    for name, value in seaweed.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    file = write(tmp_path / "study", small_study(store=server.settings()))
    study = load_study(file)
    monkeypatch.setattr("assets.study.study_file", lambda: file)
    monkeypatch.setattr("assets.runs.study", lambda: study)
    place = server.place(tmp_path, uri=study.store.uri)
    with leased(RUN):
        assert holder(place, LEASE) is not None
    assert not [*place.names(LEASE)]
