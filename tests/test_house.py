"""The order of the house: who imports whom, what files are called, how tests compare numbers."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import combinations, pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*ROOT.glob("ghn_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")]


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "ghn_fast")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_at_once(body: list[ast.stmt], package: str) -> Iterator[str]:
    """What is imported when a module is, or for its types alone: all but what functions import."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from imports_at_once(getattr(node, part, []), package)
            for handler in getattr(node, "handlers", []):
                yield from imports_at_once(handler.body, package)


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports."""
    graph = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for name in imports_at_once(ast.parse(path.read_text()).body, package):
            while name and name not in files:
                name = name.rpartition(".")[0]
            found |= {name} - {"", module}
        graph[module] = found
    return graph


def test_imports_run_in_no_circle() -> None:
    graph = import_graph({module_of(path): path for path in SOURCES})
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert order.index("ghn_fast.ops.backend") < order.index("ghn_fast.hypernet.ghn")


def test_a_circle_is_found(tmp_path: Path) -> None:
    sources = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import B\n",
        "b": "try:\n    import c\nexcept ImportError:\n    pass\n",
        "c": "def later():\n    import a\n",
    }
    files = {name: tmp_path / f"{name}.py" for name in sources}
    for name, source in sources.items():
        files[name].write_text(source)
    assert import_graph(files) == {"a": {"b"}, "b": {"c"}, "c": set()}
    files["c"].write_text("from a import A\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(import_graph(files)).static_order())


def too_alike(one: str, other: str) -> bool:
    """Whether two names differ by underscores and one letter at most."""
    one, other = sorted((one.replace("_", ""), other.replace("_", "")), key=len)
    return any(
        one[:at] == other[:at] and other[at + 1 :] in (one[at:], one[at + 1 :])
        for at in range(len(other))
    )


def test_alike_names_are_found() -> None:
    for pair in (
        ("rules", "roles"), ("layout", "layouts"), ("batchnorm", "batch_norm"), ("a", "a"),
    ):  # fmt: skip
        assert too_alike(*pair)
        assert too_alike(*reversed(pair))
    for pair in (("decode", "encode_x"), ("encode", "expand"), ("pack", "packed"), ("ab", "ba")):
        assert not too_alike(*pair)


def rooms() -> list[list[Path]]:
    """The files of each room, its folders included; tests share the names of what they test."""
    folders = [
        ROOT / "kernels",
        ROOT / "benchmarks",
        *ROOT.glob("ghn_fast/*"),
        *ROOT.glob("csrc/*"),
    ]
    return [
        [path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".cu", ".h")]
        for folder in folders
        if folder.is_dir()
    ]


def test_no_two_files_of_a_room_are_called_nearly_the_same() -> None:
    assert len(rooms()) > 10
    found = set()
    for files in rooms():
        names = sorted({path.stem for path in files})
        found |= {pair for pair in combinations(names, 2) if too_alike(*pair)}
    assert found == set()


BY_HAND = "# compared by hand: "
COMPARISONS = {
    *("allclose", "isclose", "approx", "assert_allclose", "assert_almost_equal"),
    *("assert_array_almost_equal", "assert_approx_equal"),
}
# What has to be less than something when it is compared: sizes of differences, or anything that has
# to be less than a number so small.
DISTANCES = {"abs", "absolute", "fabs", "norm"}
SMALL = 0.05


def called(node: ast.AST) -> str:
    """The dotted name of what a call calls; empty if it is no call of a name."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def compares(node: ast.AST) -> bool:
    """Whether a node compares floating-point numbers with a tolerance of its own."""
    name = called(node)
    if name.rpartition(".")[2] in COMPARISONS or name.endswith("testing.assert_close"):
        return True
    if not isinstance(node, ast.Compare):
        return False
    for (left, right), op in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
        if isinstance(op, ast.Gt | ast.GtE):
            left, right = right, left
        elif not isinstance(op, ast.Lt | ast.LtE):
            continue
        if any(called(part).rpartition(".")[2] in DISTANCES for part in ast.walk(left)):
            return True
        constants = [part.value for part in ast.walk(right) if isinstance(part, ast.Constant)]
        if any(isinstance(value, float) and 0 < value < SMALL for value in constants):
            return True
    return False


def own_tolerances(source: str) -> list[int]:
    """Lines that compare with a tolerance of their own, and no reason on or right above them."""
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    tree = ast.parse(source)
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    # Of statements within each other the innermost: its header alone, if it has a body.
    simple = [node for node in statements if not hasattr(node, "body")]
    headers = [node for node in statements if hasattr(node, "body")]
    spans = [(node.lineno, node.end_lineno or node.lineno, node) for node in simple]
    spans += [(node.lineno, max(node.lineno, node.body[0].lineno - 1), node) for node in headers]
    found, reason_until = [], -1
    for first, last, node in sorted(spans, key=lambda span: span[:2]):
        inside = [part for part in walk_own(node) if compares(part)]
        if not inside:
            continue
        above = first - 1
        while above in comments and not comments[above].startswith(BY_HAND):
            above -= 1
        lines = {above, *range(first, last + 1)}
        given = any(comments.get(line, "").startswith(BY_HAND) for line in lines)
        # A reason holds for the comparisons that follow without a gap.
        if given or reason_until == first - 1:
            reason_until = last
        else:
            found.append(first)
    return found


def walk_own(node: ast.stmt) -> Iterator[ast.AST]:
    """The parts of a statement without the statements inside it."""
    todo: list[ast.AST] = [node]
    while todo:
        part = todo.pop()
        yield part
        todo += [child for child in ast.iter_child_nodes(part) if not isinstance(child, ast.stmt)]


def test_comparisons_without_a_reason_are_found() -> None:
    for line in (
        "assert torch.allclose(a, b)",
        "assert x == pytest.approx(1)",
        "torch.testing.assert_close(a, b)",
        "np.testing.assert_allclose(a, b, atol=1)",
        "assert all(abs(x - y) < limit for x, y in pairs)",
        "assert (a - b).abs().max() <= limit",
        "assert 1e-6 > error",
        "if error < 1e-3:\n    pass",
    ):
        assert own_tolerances(line) == [1], line
        assert own_tolerances(f"# compared by hand: it is random.\n{line}") == []
        assert own_tolerances(f"# compared by hand: it is random,\n# and noisy.\n{line}") == []
        assert own_tolerances(f"# It is random.\n{line}") == [2]
    for line in ("assert_close(a, b)", "assert abs(a) == b", "assert abs(a) > 0.01", "x = abs(y)"):
        assert own_tolerances(line) == []
    two = "# compared by hand: both are random.\nassert abs(a) < 1\nassert abs(b) < 1\n"
    assert own_tolerances(two) == []
    assert own_tolerances(f"{two}\nassert abs(c) < 1") == [5]


def test_numbers_are_compared_by_the_table() -> None:
    """Tolerances live in tests/tolerances.py; another comparison says why it is one."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "tolerances.py"]
    assert len(paths) > 50
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in own_tolerances(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    "folder", ["ghn_fast/metatrain", "ghn_fast/studies", "ghn_fast/commands", "examples"]
)
def test_graphs_are_made_by_the_rules_of_their_hypernetwork(folder: str) -> None:
    """Who asks a hypernetwork how far virtual edges reach asks it by which rules graphs are made.

    Otherwise it works with GHN-2 and no other one.
    """
    for path in sorted((ROOT / folder).rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            asked = {
                node.attr
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config")
            }
            assert "virtual_edges" not in asked or asked & {"graph_rules", "rules"}, (
                f"{path.name}: {function.name} makes graphs without the hypernetwork's graph_rules"
            )
