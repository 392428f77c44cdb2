"""Only moe_core/store joins paths of a study: everything else asks its layout, so that a store can lie elsewhere.

The check is by position. A root may be passed on as a root, shown in a text, compared, and asked whether it is there;
whatever else is done with one counts as a path that is joined past the layout. So does a name of the layout that is
written out, and a path below an artifact's folder.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from moe_core.store.layout import MANIFEST, Layout

REPOSITORY = Path(__file__).parents[1]
EXEMPT = {
    "moe_core/store": "the store itself",
    "moe_core/data/sources": "a root there is a folder of the user's own source",
}
ASKED = {"absolute", "exists", "is_dir", "mkdir", "resolve"}  # methods that lead to no other file
TAKERS = {"str", "fspath", "Path", "walk", "fsync", "relative_to"}  # not ours: ours name the parameter root
KEYWORDS = {"root", "cwd", "dir"}  # a process or a nameless temporary file is started there
BELOW = {"joinpath", "glob", "rglob", "iterdir", "with_name"}  # methods that lead from an artifact's folder to a file
ALSO_WORDS = {"logs", "dagster", "table.html"}  # names of the layout that mean something else, too
PATHS = [path for name, path in vars(Layout(Path("/study"))).items() if name != "root"]
NAMES = {path.name for path in PATHS if isinstance(path, Path)} | {MANIFEST, "request.json"}
NAMES -= ALSO_WORDS

Parameters = dict[str, list[list[str]]]


def is_root(node: ast.AST | None) -> bool:
    """root, x.root or root(), and what still is one: str(root), Path(root), root.absolute()."""
    if isinstance(node, ast.Name):
        return node.id == "root"
    if isinstance(node, ast.Attribute):
        return node.attr == "root"
    if isinstance(node, ast.Call):
        name = called(node)
        if name in ("absolute", "resolve"):
            return isinstance(node.func, ast.Attribute) and is_root(node.func.value)
        return (name == "root" and not node.args) or (name in ("str", "Path") and [*map(is_root, node.args)] == [True])
    return False


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def joined(tree: ast.Module, parameters: Parameters) -> Iterator[str]:
    """Places in a module where a path of a study is made."""
    parent_of = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        parent = parent_of.get(node)
        if is_root(node) and not is_allowed(node, parent_of, parameters):
            yield f"line {node.lineno}: {ast.unparse(parent)}"
        if isinstance(node, ast.Attribute) and node.attr == "path":
            divided = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Div) and parent.left is node
            if divided or (isinstance(parent, ast.Attribute) and parent.attr in BELOW):
                yield f"line {node.lineno}: {ast.unparse(parent)}"
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield f"line {node.lineno}: {node.value!r}"


def is_allowed(node: ast.AST, parent_of: dict[ast.AST, ast.AST], parameters: Parameters) -> bool:
    match parent := parent_of[node]:
        case ast.Attribute():
            return parent.attr in ASKED
        case ast.Call():
            if parent.func is node or (called(parent) in TAKERS and len(parent.args) == 1):
                return True
            at = parent.args.index(node)
            return any(names[at : at + 1] == ["root"] for names in parameters.get(called(parent), ()))
        case ast.keyword():
            return parent.arg in KEYWORDS
        case ast.FormattedValue():
            values = parent_of[parent].values
            after = values[values.index(parent) + 1 :]
            return not (after and isinstance(after[0], ast.Constant) and after[0].value.startswith("/"))
        case ast.Assign() | ast.AnnAssign():
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return node in targets or all(map(is_root, targets))
        case ast.Return():
            function = parent_of[parent]
            return isinstance(function, ast.FunctionDef) and function.name == "root"
        case ast.Compare() | ast.Subscript() | ast.Dict():  # a key of what is remembered by root, a value of a message
            return True
    return False


@cache
def modules() -> dict[str, ast.Module]:
    files = [file for package in ("moe_core", "assets", "pipelines") for file in (REPOSITORY / package).rglob("*.py")]
    names = {file.relative_to(REPOSITORY).as_posix(): file for file in sorted(files)}
    return {n: ast.parse(f.read_text("utf-8")) for n, f in names.items() if not n.startswith(tuple(EXEMPT))}


@cache
def parameters_of_ours() -> Parameters:
    """Parameters of every function, and fields of every class, by its name; without self."""
    found: Parameters = {"Layout": [["root"]], "FolderDocuments": [["root"]], "open_store": [["study", "root"]]}
    for node in (node for tree in modules().values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            found.setdefault(node.name, []).append(names[names[:1] in (["self"], ["cls"]) :])
        elif isinstance(node, ast.ClassDef):
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            found.setdefault(node.name, []).append([f.id for f in fields if isinstance(f, ast.Name)])
    return found


def test_only_the_store_joins_paths_of_a_study():
    assert len(modules()) > 150
    found = {name: places for name, tree in modules().items() if (places := [*joined(tree, parameters_of_ours())])}
    assert found == {}, "take the path from store.layout, or from Artifact.file"


def test_only_the_store_chooses_its_implementation():
    """Everything else opens it by moe_core/store/protocols.py."""
    calls = [(name, node) for name, tree in modules().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert any(called(call) == "open_store" for _, call in calls)
    assert [f"{name}:{call.lineno}" for name, call in calls if called(call) == "Store"] == []


@pytest.mark.parametrize(
    "line",
    [
        "root / 'x'",
        "context.root / name",
        "root() / 'x'",
        "root.joinpath('x')",
        "store.root.glob('*')",
        "root.parent",
        "root /= 'x'",
        "f'{root}/x'",
        "str(root) + '/x'",
        "Path(root, 'x')",
        "Path(str(root)) / 'x'",
        "os.path.join(root, 'x')",
        "root.absolute() / 'x'",
        "folder = context.root",
        "for folder in (root, other): pass",
        "elsewhere(context.root)",
        "def folder(): return root",
        "artifact.path / 'log.jsonl'",
        "artifact.path.rglob('*')",
        "folder / 'posts.lance'",
        "home / 'artifact.json'",
    ],
)
def test_a_path_that_is_joined_past_the_layout_is_seen(line):
    assert [*joined(ast.parse(f"def elsewhere(folder): pass\n{line}"), {"elsewhere": [["folder"]]})]


@pytest.mark.parametrize(
    "line",
    [
        "Layout(root).posts_table",
        "Context(study, context.root)",
        "root.mkdir()",
        "f'no study in {root}: {why}'",
        "self.root = root",
        "path.relative_to(context.root)",
        "artifact.file('weights.safetensors')",
        "open(damage.path)",
        "'posts.lance and rejects.lance'",
    ],
)
def test_a_root_may_be_passed_on_and_shown(line):
    assert [*joined(ast.parse(line), {"Layout": [["root"]], "Context": [["study", "root"]]})] == []
