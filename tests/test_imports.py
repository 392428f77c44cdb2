"""Which module may import which: docs/extending.md and ARCHITECTURE name the rooms, this holds the walls.

Read from the source, imports inside functions and for types included.
"""

import pytest

from helpers.imports import MODULES, all_imports, circles, imports_of

LIBRARIES = ("data", "models", "clustering", "training", "evaluation", "serving", "tables", "tagging")
APART = ("data", "models", "clustering", "evaluation")  # libraries that do not import one another
ALONG_THE_GRAPH = ("data", "trunk", "gate", "experts", "mixture", "pilot", "evaluation")  # rooms of moe_core/stages
ABOVE_STAGES = ("maintenance", "workspace", "trunk_rank", "joint_helper")
STORE_MAY = ("store", "settings", "text", "failpoints", "errors", "processes")
MOE = "moe_core"


def within(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def core(*names):
    return tuple(f"{MOE}.{name}" for name in names)


def stages(*rooms):
    return tuple(f"{MOE}.stages.{room}" for room in rooms)


RULES = {
    "moe_core knows neither assets nor pipelines": lambda a, b: within(a, MOE) and not within(b, MOE),
    "assets do not know pipelines": lambda a, b: within(a, "assets") and within(b, "pipelines"),
    "libraries know no stage and no engine": lambda a, b: (
        within(a, *core(*LIBRARIES)) and within(b, *core("stages", "engine", *ABOVE_STAGES))
    ),
    "data, models, clustering and evaluation do not know one another": lambda a, b: any(
        within(a, *core(room)) and within(b, *core(*(other for other in APART if other != room))) for room in APART
    ),
    "the engine knows no stage and no table": lambda a, b: (
        within(a, *core("engine")) and within(b, *core("stages", "tables", "training", "models", *ABOVE_STAGES))
    ),
    "the store knows nothing above it": lambda a, b: (
        within(a, *core("store")) and not within(b, *core(*STORE_MAY)) and b != MOE
    ),
    "stages do not know what is above them": lambda a, b: (
        within(a, *core("stages")) and within(b, *core(*ABOVE_STAGES), *stages("graph"))
    ),
    "stages import one another along the graph": lambda a, b: any(
        within(a, *stages(room)) and within(b, *stages(*ALONG_THE_GRAPH[number + 1 :]))
        for number, room in enumerate(ALONG_THE_GRAPH)
    ),
    "what runs knows no command": lambda a, b: within(a, "pipelines.run") and within(b, "pipelines.cli"),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports_keep_the_walls(rule):
    broken = [found for found in all_imports() if RULES[rule](found.importer, found.imported)]
    assert broken == [], "\n".join(f"{found.importer}:{found.line} imports {found.imported}" for found in broken)


@pytest.mark.parametrize(
    ("rule", "importer", "imported"),
    [
        ("moe_core knows neither assets nor pipelines", "moe_core.text", "assets.study"),
        ("libraries know no stage and no engine", "moe_core.data.tags", "moe_core.stages.graph"),
        ("the store knows nothing above it", "moe_core.store.files", "moe_core.engine.stage"),
        ("stages import one another along the graph", "moe_core.stages.trunk.trunk", "moe_core.stages.gate.refit"),
        ("stages do not know what is above them", "moe_core.stages.data.rows", "moe_core.maintenance.gc"),
    ],
)
def test_a_wall_tells_who_breaks_it(rule, importer, imported):
    assert {importer, imported} <= set(MODULES)
    assert RULES[rule](importer, imported)


def test_no_modules_import_one_another():
    assert circles() == []


def test_all_imports_are_found():
    found = {(one.importer, one.imported): one.in_function for one in all_imports()}
    assert found["moe_core.engine.planner", "moe_core.engine.stage"] is False
    assert len(found) > 500
    assert len(MODULES) > 150


def test_no_function_imports_a_module_of_ours():
    """A function imports only a library that is heavy. What is to load late is named: a stage's maker, a command."""
    found = [one for one in all_imports() if one.in_function]
    assert found == [], "\n".join(f"{one.importer}:{one.line} imports {one.imported}" for one in found)


def test_an_import_inside_a_function_is_found():
    text = "import moe_core.text\nclass A:\n    def f(self):\n        from moe_core.engine import stage\n"
    found = [(one.imported, one.line, one.in_function) for one in imports_of("assets.data", text)]
    assert found == [("moe_core.text", 1, False), ("moe_core.engine.stage", 4, True)]
