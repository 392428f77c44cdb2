"""A study in a bucket after it was built: publish and roll back, fit again, gc, verify, status."""

import json

import pytest

from helpers import quick_leases, seaweed
from helpers.publishing import hardmoe
from helpers.two_mixtures import make, tiny_study, write
from moe_core.engine.build import build
from moe_core.errors import MissingInput
from moe_core.maintenance.gc import collect
from moe_core.maintenance.verify import Damage, verify
from moe_core.settings import Source, Training
from moe_core.stages.gate import current_partition
from moe_core.stages.mixture.comparison import open_mixture
from moe_core.store.layout import NAMES, Layout
from moe_core.workspace import open_study, reopened, token


@pytest.fixture(scope="module")
def root(server, tmp_path_factory):
    """A folder whose study has a mixture in a bucket, and another one of experts that learned more slowly."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment(folder / "cache").items():
            patch.setenv(name, value)
        undo = quick_leases.use()
        once = Training(epochs=1, batch_size=32, flip=False, crop=0, checkpoint_seconds=60)
        source = Source(format="synthetic", posts=160, shards=2)
        study = tiny_study(source=source, trunk=once, expert_training=once, store=server.settings())
        root = folder / "root"
        write(root, study)
        for lr in (1e-9, once.lr):
            make(open_study(slower(study, lr), root), "mixture")
        yield root
        undo()


def slower(study, lr):
    return study.changed(expert_training=study.expert_training.model_copy(update={"lr": lr}))


@pytest.fixture
def context(root):
    from moe_core.study_file import load_study

    return open_study(load_study(Layout(root).study_file), root)


def publish(context, *options):
    done = hardmoe("publish", "--study", context.store.layout.study_file, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def mixtures(context):
    return {artifact.version for artifact in context.store.versions("mixture", None)}


def test_a_mixture_is_published_and_rolled_back(context):
    mine = context.need("mixture").version
    (other,) = mixtures(context) - {mine}
    assert publish(context, "--version", other, "--force")["published"] == other
    build(reopened(context), "published")
    assert publish(context, "--version", mine, "--force")["published"] == mine
    assert publish(context, "--rollback")["published"] == other
    log = publish(context, "--list")
    assert (log["published"], log["previous"]) == (other, "")
    assert publish(context, "--version", mine, "--force")["published"] == mine
    assert not [path for path in context.root.rglob("*.json") if "published" in path.name], "none lies on this machine"


def test_gc_removes_what_nothing_needs_and_what_is_published_stays(context):
    place = context.store.place
    place.write("mixture/0123456789abcdef0123/at-1/half.json", b"of a process that died")
    place.write("expert/e000/.work-0123456789abcdef0123/000001/000000001.json", b"its checkpoint")
    publish(context, "--version", context.need("mixture").version, "--force")
    seen = collect(context, superseded=True, keep=0, dry_run=True)
    assert "mixture/0123456789abcdef0123/at-1" in seen.removed
    assert len(mixtures(context)) == 2
    freed = collect(reopened(context), superseded=True, keep=0)
    assert (freed.removed, freed.sizes) == (seen.removed, seen.sizes)
    assert freed.bytes > 0
    now = reopened(context)
    published = now.planner.state.publication
    assert {published.published, published.previous} - {""} <= mixtures(now)
    open_mixture(now, published.published)
    for name in freed.removed:
        assert [*place.names(name)] == []
    assert collect(now, superseded=True, keep=0, dry_run=True).removed == []


def test_verify_reads_the_bucket_and_not_the_cache(context):
    assert not [one for one in verify(context) if isinstance(one, Damage)]
    artifact = context.need("mixture")
    name = f"{artifact.base}/manifest.json"
    artifact.file("manifest.json")  # lies in the cache now
    whole = context.store.place.read(name)
    context.store.place.write(name, whole[:-1] + b" ")
    (damage,) = [one for one in verify(reopened(context)) if isinstance(one, Damage)]
    assert damage.where == f"{context.store.uri}/mixture/{artifact.version}"
    assert f"{context.store.uri}/{name} is missing, or not the file that was written" in damage.why
    context.store.place.write(name, whole)
    pointer = NAMES.publication
    good = context.store.documents.read(pointer)
    context.store.documents.update(pointer, lambda _: good[:-9])
    (damage,) = [one for one in verify(reopened(context)) if isinstance(one, Damage)]
    assert (damage.where, damage.is_artifact) == (context.store.documents.where(pointer), False)
    context.store.documents.update(pointer, lambda _: good)


def test_status_tells_what_lies_in_the_bucket(context):
    done = hardmoe("status", "--study", context.store.layout.study_file, "--json")
    assert done.exit_code == 0, done.output
    states = {row["asset"]: row["state"] for row in json.loads(done.stdout)["assets"] if row["key"] is None}
    assert states["trunk"] == "fresh", states
    with pytest.raises(MissingInput):
        context.need("report")


def test_a_request_for_another_fit_is_seen_by_all_and_spent_by_it(context):
    before = context.planner.state.token
    current_partition.request_refit(context)
    assert token(context.study, context.store.documents) != before
    again = reopened(context)
    assert "refit" in again.planner.state.requests
    partition = build(again, "partition").artifact
    assert partition.version != context.need("partition").version
    after = reopened(again)
    assert (after.planner.state.requests, after.need("partition").version) == (frozenset(), partition.version)
    assert after.store.documents.read(NAMES.request("partition")) is None
