"""A request meets runs that crashed, and that Dagster's daemon launches again."""

import dagster as dg
import pytest

from helpers.without_controls import opened
from moe_core.store.documents import FolderDocuments
from moe_core.study_file import load_study
from pipelines import requests
from pipelines.requests import REQUEST_TAG, launch_requested, request_run

STATES = dg.DagsterRunStatus


@pytest.fixture
def tick(file, monkeypatch):
    """A tick of the sensor on a study up to its partition: the experts that it wants to run."""
    monkeypatch.setattr(requests, "root", lambda: file.parent)
    monkeypatch.setattr(requests, "study", lambda: load_study(file))
    monkeypatch.setattr(requests, "opened_in_time", lambda: opened(file))

    def once(instance):
        result = launch_requested(dg.build_sensor_context(instance=instance))
        return [run.partition_key for run in result.run_requests or () if (run.partition_key or "").startswith("e0")]

    return once


def crashed(instance, request, expert, will_retry):
    tags = {
        "hardmoe/study": "tiny",
        "dagster/partition": expert,
        REQUEST_TAG: request.id,
        "dagster/will_retry": will_retry,
    }
    selected = frozenset({dg.AssetKey("expert")})
    instance.add_run(dg.DagsterRun("study_assets", status=STATES.FAILURE, asset_selection=selected, tags=tags))


def test_a_crashed_run_that_is_launched_again_is_not_given_up(file, tick):
    request = request_run(FolderDocuments(file.parent), until="expert")
    with dg.instance_for_test() as instance:
        experts = tick(instance)
        assert len(experts) > 1
        for expert in experts:
            crashed(instance, request, expert, "true")
        assert tick(instance) == experts, "by the same run keys, which Dagster launches once"
        for expert in experts:
            crashed(instance, request, expert, "false")
        assert tick(instance) == []
