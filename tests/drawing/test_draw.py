"""Pictures of graphs: layouts by their geometry, files by what is in them."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
import torchvision

from ghn_fast import cli
from ghn_fast.capturing import capture
from ghn_fast.deepnets import SampledNets
from ghn_fast.drawing import placement
from ghn_fast.drawing.draw import STYLES, check_picture, draw_graph, node_kind
from ghn_fast.drawing.placement import Layout, layout_graph
from ghn_fast.graph import NODE_TYPES, ArchGraph
from ghn_fast.graph.properties import main_edges
from networks import Branches
from tolerances import assert_close

SIZE = (0.2, 0.15)

# A stand-in for graphviz: it puts node n at (2, -n), and draws straight edges.
FAKE_DOT = """#!{python}
import re, sys
text = sys.stdin.read()
nodes = [int(n) for n in re.findall(r"^(\\d+) \\[", text, re.M)]
print("graph 1 4 9")
for n in nodes:
    print(f"node {{n}} 2 {{-n}} 0.2 0.2 x solid box black grey")
for a, b in re.findall(r"^(\\d+) -> (\\d+)", text, re.M):
    print(f"edge {{a}} {{b}} 4 2 -{{a}}.1 2 -{{a}}.2 2 -{{a}}.3 2 \\\\\\n-{{a}}.9 solid black")
print("stop")
"""


@pytest.fixture(scope="module")
def resnet() -> ArchGraph:
    return capture(torchvision.models.resnet18(num_classes=10), virtual_edges=1)


@pytest.fixture
def without_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def check_geometry(drawing: Layout, edges: list[tuple[int, int]], sizes: list) -> None:
    """No node covers another, everything is inside, and edges go from node to node, downwards."""
    for (a, (xa, ya)), (b, (xb, yb)) in itertools.combinations(enumerate(drawing.positions), 2):
        apart_x = abs(xa - xb) - (sizes[a][0] + sizes[b][0]) / 2
        apart_y = abs(ya - yb) - (sizes[a][1] + sizes[b][1]) / 2
        assert max(apart_x, apart_y) > 0.02, (a, b)
    assert set(drawing.routes) == set(edges)
    everything = [point for route in drawing.routes.values() for point in route]
    for x, y in [*everything, *drawing.positions]:
        # compared by hand: bounds, which sums of sizes meet up to rounding.
        assert -1e-6 <= x <= drawing.width + 1e-6
        assert -1e-6 <= y <= drawing.height + 1e-6
    for (source, target), route in drawing.routes.items():
        assert len(route) % 3 == 1
        for node, point in ((source, route[0]), (target, route[-1])):
            offset = [abs(p - c) for p, c in zip(point, drawing.positions[node], strict=True)]
            # compared by hand: bounds, which sums of sizes meet up to rounding.
            assert offset[0] <= sizes[node][0] / 2 + 1e-6
            assert offset[1] <= sizes[node][1] / 2 + 1e-6
        if drawing.columns == 1:
            assert drawing.positions[source][1] < drawing.positions[target][1]


@pytest.mark.parametrize("columns", [1, None, 5])
def test_layered_layout(without_dot: None, resnet: ArchGraph, columns: int | None) -> None:
    edges, sizes = main_edges(resnet), [SIZE] * resnet.num_nodes
    drawing = layout_graph(edges, sizes, columns=columns)
    assert drawing.engine == "layered"
    assert columns is None or drawing.columns == columns
    check_geometry(drawing, edges, sizes)


@pytest.mark.parametrize("split", ["train", "dense", "deep"])
def test_layered_layout_of_deepnets(split: str) -> None:
    graph = SampledNets(split, 3, 1)[2].graph
    generator = torch.Generator().manual_seed(0)
    widths = torch.rand(graph.num_nodes, generator=generator).add(0.2).tolist()
    sizes = [(width, 0.17) for width in widths]
    drawing = layout_graph(main_edges(graph), sizes, engine="layered")
    check_geometry(drawing, main_edges(graph), sizes)
    assert 0.4 < drawing.width / drawing.height < 4


def test_a_chain_is_straight() -> None:
    edges = [(node, node + 1) for node in range(9)]
    drawing = layout_graph(edges, [SIZE] * 10, engine="layered")
    assert len({round(x, 9) for x, _ in drawing.positions}) == 1
    steps = [b[1] - a[1] for a, b in itertools.pairwise(drawing.positions)]
    assert_close(steps, [SIZE[1] + placement.RANK_GAP] * 9)


def test_parallel_chains_do_not_cross() -> None:
    # Chains whose numbers are interleaved so that the order of the numbers makes them cross.
    edges = [(0, 1), (0, 2), (1, 4), (2, 3), (3, 5), (4, 6), (5, 8), (6, 7), (7, 9), (8, 9)]
    x = [x for x, _ in layout_graph(edges, [SIZE] * 10, engine="layered").positions]
    left = [x[1] < x[2], x[4] < x[3], x[6] < x[5], x[7] < x[8]]
    assert len(set(left)) == 1


def test_small_layouts() -> None:
    assert layout_graph([], []).positions == []
    single = layout_graph([], [SIZE], engine="layered")
    assert_close((single.width, single.height), SIZE)
    apart = layout_graph([(0, 1)], [SIZE] * 3, engine="layered")
    check_geometry(apart, [(0, 1)], [SIZE] * 3)


def test_dot_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = tmp_path / "dot"
    dot.write_text(FAKE_DOT.format(python=sys.executable))
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    edges = [(0, 1), (1, 2), (0, 2)]
    drawing = layout_graph(edges, [SIZE] * 3)
    assert drawing.engine == "dot"
    assert_close([y - drawing.positions[0][1] for _, y in drawing.positions], [0.0, 1.0, 2.0])
    start, end = drawing.routes[1, 2][0], drawing.routes[1, 2][-1]
    assert_close(end[1] - start[1], 0.8)
    assert layout_graph(edges, [SIZE] * 3, engine="layered").engine == "layered"
    dot.write_text("#!/bin/sh\necho out of order >&2; exit 3\n")
    assert layout_graph(edges, [SIZE] * 3).engine == "layered"
    with pytest.raises(ValueError, match="out of order"):
        layout_graph(edges, [SIZE] * 3, engine="dot")


def test_dot_is_missing(without_dot: None) -> None:
    with pytest.raises(ValueError, match=r"dot was asked for.*install graphviz"):
        layout_graph([(0, 1)], [SIZE] * 2, engine="dot")


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_graphviz(resnet: ArchGraph) -> None:
    edges, sizes = main_edges(resnet), [SIZE] * resnet.num_nodes
    drawing = layout_graph(edges, sizes, engine="dot")
    assert drawing.engine == "dot"
    assert len(drawing.positions) == resnet.num_nodes
    assert set(drawing.routes) == set(edges)


def test_wrong_layouts() -> None:
    with pytest.raises(ValueError, match="engine: got 'neato'"):
        layout_graph([], [], engine="neato")
    with pytest.raises(ValueError, match="columns: got 0"):
        layout_graph([], [SIZE], columns=0)


def test_kinds(resnet: ArchGraph) -> None:
    kinds = [node_kind(resnet, node) for node in range(resnet.num_nodes)]
    assert kinds.count("conv") == 17
    assert kinds.count("conv 1×1") == 3
    assert kinds.count("linear") == 1
    assert set(NODE_TYPES) <= set(STYLES)
    looks = [(style.colour, style.marker) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({style.colour for style in STYLES.values()}) == len(looks)


def test_svg(resnet: ArchGraph, tmp_path: Path, without_dot: None) -> None:
    first, second = tmp_path / "a" / "one.svg", tmp_path / "two.svg"
    for path in (first, second):
        draw_graph(resnet, path, title="18 $ & <layers>", labels="op")
    assert first.read_bytes() == second.read_bytes()
    root = ET.parse(first).getroot()
    texts = [
        "".join(element.itertext()).strip() for element in root.iter() if "text" in element.tag
    ]
    assert "18 $ & <layers>" in texts
    assert texts.count("conv 64×64×3×3") == 4
    assert texts.count("max_pool 3×3") == 1
    # The legend has the kinds that occur, and no others.
    assert set(STYLES) & set(texts) == {node_kind(resnet, n) for n in range(resnet.num_nodes)}


def test_virtual_edges(tmp_path: Path, without_dot: None) -> None:
    graph = capture(Branches(), (3, 16, 16), virtual_edges=1)
    strokes = {}
    for farthest in (1, 2, 50):
        path = tmp_path / f"{farthest}.svg"
        draw_graph(graph, path, virtual_edges=farthest)
        strokes[farthest] = path.read_text().count("stroke: #d98324")
    distances = graph.with_virtual_edges(50).edges[:, 2]
    assert strokes[1] == 0
    assert strokes[2] == int((distances == 2).sum())
    assert strokes[50] == int((distances > 1).sum())


def test_pictures(resnet: ArchGraph, tmp_path: Path, without_dot: None) -> None:
    from matplotlib.image import imread

    draw_graph(resnet, tmp_path / "graph.PNG")
    picture = imread(tmp_path / "graph.PNG")
    for kind in ("conv", "bn", "sum"):
        colour = torch.tensor([int(STYLES[kind].colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        # compared by hand: the channels of a picture are bytes, 1/255 apart.
        near = (torch.from_numpy(picture[..., :3]) - colour).abs().amax(-1) < 0.01
        assert int(near.sum()) > 500, kind
    draw_graph(resnet, tmp_path / "graph.pdf", labels="name")
    assert (tmp_path / "graph.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.PNG", "graph.pdf"]


def test_a_large_graph_is_not_too_large_a_picture(tmp_path: Path) -> None:
    nodes = 1500
    rows = torch.tensor([(node, node + 1, 1) for node in range(nodes - 1)])
    types = torch.full((nodes,), 7)
    chain = ArchGraph(types, rows, (None,) * nodes, ("sum",) * nodes, virtual_edges=1)
    drawing = draw_graph(chain, tmp_path / "chain.svg", engine="layered")
    assert max(drawing.width, drawing.height) < 60
    assert math.isfinite(drawing.width)


def test_mistakes_are_found_before_the_work(
    resnet: ArchGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.svg").mkdir()
    for name, message in (
        ("graph.gif", r"needs a suffix of \.svg, \.png, \.pdf"),
        ("graph", "suffix"),
        ("file/graph.svg", "is a file"),
        ("folder.svg", "is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_picture(tmp_path / name)
    with pytest.raises(ValueError, match="labels: got 'all'"):
        draw_graph(resnet, tmp_path / "a.svg", labels="all")
    with pytest.raises(ValueError, match="virtual_edges: got 0"):
        draw_graph(resnet, tmp_path / "a.svg", virtual_edges=0)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_picture(tmp_path / "a.svg")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ghn-fast\[drawing\]'"):
        check_picture(tmp_path / "a.svg")


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ghn-fast", "draw", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    picture = tmp_path / "graph.svg"
    status, out, error = run("resnet18", "--out", str(picture), "--layout", "layered")
    assert status == 0, error
    assert "53 nodes, 60 edges, average degree 2.26, average shortest path 7.58" in out
    assert "resnet18" in picture.read_text()
    options = ("--title", "mine", "--labels", "op", "--num-classes", "7", "--virtual-edges", "2")
    status, out, error = run("deepnets:test:1", "--out", str(picture), *options)
    assert status == 0, error
    nodes = SampledNets("test", 2, 0)[1].num_nodes
    assert f"{nodes} nodes" in out
    text = picture.read_text()
    assert re.search(r"\bmine\b", text)
    assert "bias 7" in text
    for model, message in (
        ("resnet19", "the nearest are resnet18"),
        ("deepnets:tests:1", "deepnets:SPLIT:INDEX"),
        ("deepnets:test", "deepnets:SPLIT:INDEX"),
        ("deepnets:predefined:2", "has 2 architectures"),
    ):
        status, _, error = run(model, "--out", str(tmp_path / "none.svg"))
        assert status == 2
        assert message in error
    # Refused before the model is looked at.
    status, _, error = run("resnet19", "--out", str(tmp_path / "graph.gif"))
    assert status == 2
    assert "suffix" in error
    assert [path.name for path in tmp_path.iterdir()] == ["graph.svg"]
