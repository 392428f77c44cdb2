"""A study whose whole graph is made in this process."""

from helpers.kills import study
from moe_core.engine.build import build
from moe_core.study_file import dump_study
from moe_core.workspace import open_study


def tasks(context):
    graph = context.planner.graph
    stages = [graph[name] for name in graph.usual if not graph[name].control]
    return [(s, key) for s in stages for key in context.planner.keys(s.name)]


def make_all(context):
    """Digest of each artifact, and what of it was made now."""
    built = {(s.name, key): build(context, s.name, key) for s, key in tasks(context)}
    return {name: b.artifact.content_hash for name, b in built.items()}, [n for n, b in built.items() if not b.reused]


def finished(root):
    (root / "study.toml").write_text(dump_study(study()), "utf-8")
    make_all(open_study(study(), root))
    return root


def files(root):
    return [path for path in root.rglob("*") if path.is_file()]
