"""Files in the published format: read, written, and refused."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ghn_fast.deepnets import (
    DeepNets,
    NetworkConfig,
    build_graph,
    generate,
    sample_config,
    splits_in,
)
from ghn_fast.deepnets.files.generate import make_record
from ghn_fast.deepnets.files.hdf5 import SplitFile, SplitWriter
from ghn_fast.deepnets.graphs.sizes import count_parameters
from ghn_fast.graph import NODE_TYPES
from graphs import assert_same_graph, op_histogram

SMALL = {"val": 53, "test": 88, "bnfree": 59}
ALL = {"val": 12, "test": 6, "wide": 3, "deep": 3, "dense": 3, "bnfree": 3}


def write(folder: Path, split: str = "test", count: int = 4, seed: int = 3) -> Path:
    with SplitWriter(folder, split) as writer:
        for index in range(count):
            writer.add(make_record(split, index, seed))
    return folder


def edit_meta(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def stored_names(folder: Path, split: str, index: int) -> list[tuple[str, str]]:
    """Type and full name of each node as the files spell them, read without the package."""
    meta = json.loads((folder / "deepnets1m_eval_meta.json").read_text())[split]["meta"]
    with h5py.File(folder / "deepnets1m_eval.hdf5") as file:
        rows = file[f"{split}/{index}/nodes"][()].tolist()
    result = []
    for primitive, cell, name in rows:
        kind = meta["primitives_ext"][str(primitive)].replace("conv_1x1", "conv")
        text = meta["unique_op_names"][str(name)]
        if re.match(r"preprocess|_ops", text):
            text = f"cells.{cell}.{text}"
        result.append((kind, text))
    return result


def check_published(folder: Path, split: str, count: int) -> None:
    nets = DeepNets(folder, split)
    ordered = DeepNets(folder, split, reorder=True)
    assert len(nets) == len(ordered) == count
    with h5py.File(folder / "deepnets1m_eval.hdf5") as file:
        for index, item in enumerate(nets):
            matrix = file[f"{split}/{index}/adj"][()].astype(np.int64)
            read = torch.zeros(matrix.shape, dtype=torch.int64)
            read[item.graph.edges[:, 0], item.graph.edges[:, 1]] = item.graph.edges[:, 2]
            assert np.array_equal(read.numpy(), np.where(matrix > 50, 0, matrix))
            kinds = [NODE_TYPES[kind] for kind in item.graph.op_types.tolist()]
            found = list(zip(kinds, item.graph.names, strict=True))
            assert found == stored_names(folder, split, index)
            shapes = {name: tuple(p.shape) for name, p in item.build().named_parameters()}
            assert {t.name for t in item.graph.targets} <= set(shapes)
            assert all(shapes[t.name] == t.shape for t in item.graph.targets)
            derived = build_graph(item.config_for(32))
            assert op_histogram(item.graph) == op_histogram(derived)
            assert torch.equal(item.graph.edges, derived.edges)
            assert_same_graph(ordered[index].graph, derived)


@pytest.mark.parametrize("split", list(SMALL))
def test_published_files(small_fixtures_dir: Path, split: str) -> None:
    check_published(small_fixtures_dir / "deepnets", split, 1)
    nets = DeepNets(small_fixtures_dir / "deepnets", split)
    assert nets[0].num_nodes == nets[0].graph.num_nodes == SMALL[split]
    config = nets[0].config
    assert config is not None
    stored = nets[0].base_params
    base = NetworkConfig.from_dict({**config.to_dict(), "C": 32, "fc_dim": 256})
    assert stored["cifar10"] == count_parameters(base, 10, 32)
    assert stored["imagenet"] == count_parameters(base, 10, 224)


@pytest.mark.parametrize("split", list(ALL))
def test_all_published_files(fixtures_dir: Path, split: str) -> None:
    check_published(fixtures_dir / "deepnets", split, ALL[split])


@pytest.mark.parametrize("split", ["train", "deep", "wide"])
def test_what_is_written_is_read(tmp_path: Path, split: str) -> None:
    write(tmp_path, split)
    file = SplitFile(tmp_path, split)
    nets = DeepNets(tmp_path, split)
    assert len(file) == len(nets) == 4
    for index, item in enumerate(nets):
        config = sample_config(split, index, 3)
        assert item.config == config
        assert_same_graph(item.graph, build_graph(item.config_for(32)))
        assert item.num_nodes == item.graph.num_nodes
        assert item.base_params == {
            "cifar10": count_parameters(config, 10, 32),
            "imagenet": count_parameters(config, 10, 224),
        }


def test_written_files_have_the_published_format(tmp_path: Path, small_fixtures_dir: Path) -> None:
    """Same keys, types and spellings, with the rows in the order of the graph."""
    published = small_fixtures_dir / "deepnets" / "deepnets1m_eval"
    expected = json.loads(Path(f"{published}_meta.json").read_text())["test"]
    write(tmp_path, count=20)
    content = json.loads((tmp_path / "deepnets1m_test_meta.json").read_text())
    assert list(content) == ["test"]
    assert set(content["test"]["nets"][0]) == set(expected["nets"][0])
    assert set(content["test"]["meta"]) == set(expected["meta"])
    primitives, names = (
        content["test"]["meta"][key] for key in ("primitives_ext", "unique_op_names")
    )
    assert set(expected["meta"]["primitives_ext"].values()) <= set(primitives.values())
    assert {"conv_1x1", "input", "glob_avg"} <= set(primitives.values())
    assert not any(name.startswith("cells.") for name in names.values())
    plain = {"input", "sum", "concat", "max_pool", "avg_pool", "glob_avg"}
    assert plain < set(names.values())
    with (
        h5py.File(tmp_path / "deepnets1m_test.hdf5") as ours,
        h5py.File(f"{published}.hdf5") as theirs,
    ):
        assert dict(ours.attrs) == dict(theirs.attrs)
        assert sorted(ours["test"], key=int) == [str(i) for i in range(20)]
        for name in ("adj", "nodes"):
            assert ours[f"test/0/{name}"].dtype == theirs[f"test/0/{name}"].dtype
        config = sample_config("test", 0, 3)
        graph = build_graph(config, virtual_edges=250)
        matrix = ours["test/0/adj"][()]
        assert matrix.shape == (graph.num_nodes, graph.num_nodes)
        source, target, distance = graph.edges.numpy().T
        assert np.array_equal(matrix[source, target], distance)
        assert np.count_nonzero(matrix) == graph.num_edges
        row = ours["test/0/nodes"][()][-1].tolist()
        last = [primitives[str(row[0])], row[1], names[str(row[2])]]
        assert last == ["bias", config.n_cells - 1, graph.names[-1]]


def test_a_distance_above_250_is_not_written() -> None:
    from ghn_fast.deepnets.files.node_table import distances

    graph = build_graph(sample_config("test", 0, 0), virtual_edges=251)
    with pytest.raises(ValueError, match="up to 251, needs at most 250"):
        distances(graph)


def test_older_spellings(tmp_path: Path) -> None:
    """Names without 'weight' or '.op.', an empty name for the input, kernel sizes in primitives."""
    write(tmp_path, count=12)
    path = tmp_path / "deepnets1m_test_meta.json"
    before = [item.graph for item in DeepNets(tmp_path, "test")]

    def respell(content: dict[str, Any]) -> None:
        meta = content["test"]["meta"]
        changed = {}
        for key, name in meta["unique_op_names"].items():
            older = re.sub(r"to_out\.0\.weight$", "to_out.0.", name)
            older = re.sub(r"^(_ops\.\d+)\.op\.(\d+)", r"\1.\2", older)
            changed[key] = "" if older == "input" else older
        assert len({*changed.values()} - {*meta["unique_op_names"].values()}) > 20
        meta["unique_op_names"] = changed
        spellings = {"sep_conv": "sep_conv_3x3", "max_pool": "max_pool_3x3", "bias": "fc-b"}
        spellings["conv"] = "conv_7x1_1x7"
        meta["primitives_ext"] = {
            key: spellings.get(name, name) for key, name in meta["primitives_ext"].items()
        }

    edit_meta(path, respell)
    for item, graph in zip(DeepNets(tmp_path, "test"), before, strict=True):
        assert_same_graph(item.graph, graph)


def test_an_edge_that_the_distances_do_not_know_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    last = DeepNets(tmp_path, "test", virtual_edges=1)[0].graph.num_nodes - 1
    with h5py.File(tmp_path / "deepnets1m_test.hdf5", "r+") as file:
        assert file["test/0/adj"][3, last] > 1
        file["test/0/adj"][3, last] = 1
    message = r"test.hdf5: test/0: its distances are not those of its edges"
    with pytest.raises(ValueError, match=message):
        _ = DeepNets(tmp_path, "test", virtual_edges=1)[0].graph


@pytest.mark.parametrize("reorder", [False, True])
def test_a_graph_of_another_network_is_refused(
    tmp_path: Path, small_fixtures_dir: Path, reorder: bool
) -> None:
    for path in (small_fixtures_dir / "deepnets").glob("deepnets1m_eval*"):
        shutil.copy(path, tmp_path)
    with h5py.File(tmp_path / "deepnets1m_eval.hdf5", "r+") as file:
        nodes = file["val/0/nodes"][()]
        nodes[[3, 5]] = nodes[[5, 3]]
        file["val/0/nodes"][...] = nodes
    message = r"eval.hdf5: val/0: its graph is not the one that the configuration .* describes"
    with pytest.raises(ValueError, match=message):
        _ = DeepNets(tmp_path, "val", reorder=reorder)[0].graph


def test_a_single_file_or_the_combined_one(tmp_path: Path, small_fixtures_dir: Path) -> None:
    combined = small_fixtures_dir / "deepnets"
    by_file = DeepNets(combined / "deepnets1m_eval.hdf5", "val")
    assert by_file[0].config == DeepNets(combined, "val")[0].config
    # A file of the split itself comes first.
    for path in combined.glob("deepnets1m_eval*"):
        shutil.copy(path, tmp_path)
    write(tmp_path, "val", count=3)
    assert len(DeepNets(tmp_path, "val")) == 3
    assert len(DeepNets(tmp_path, "test")) == 1


def test_splits_of_a_folder(tmp_path: Path, small_fixtures_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no files of DeepNets-1M"):
        splits_in(tmp_path)
    write(tmp_path, "train", count=1)
    write(tmp_path, "wide", count=1)
    assert splits_in(tmp_path) == ["train", "wide"]
    assert splits_in(tmp_path / "deepnets1m_wide.hdf5") == ["wide"]
    assert splits_in(small_fixtures_dir / "deepnets") == ["val", "test", "bnfree"]
    (tmp_path / "deepnets1m_wide_meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"deepnets1m_wide_meta.json: not a JSON file"):
        splits_in(tmp_path)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["deepnets1m_train.hdf5"]),
        ("val", ["deepnets1m_val.hdf5", "deepnets1m_eval.hdf5"]),
    ],
)
def test_missing_files_are_listed(tmp_path: Path, split: str, names: list[str]) -> None:
    with pytest.raises(FileNotFoundError) as info:
        DeepNets(tmp_path, split)
    assert all(str(tmp_path / name) in str(info.value) for name in names)
    assert ("eval" in str(info.value)) == (split == "val")
    write(tmp_path, split, count=1)
    (tmp_path / f"deepnets1m_{split}_meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"deepnets1m_{split}_meta.json"):
        DeepNets(tmp_path, split)


def read_all(folder: Path) -> None:
    for item in DeepNets(folder, "test"):
        _ = item.graph, item.config


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_off_data_is_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path) / "deepnets1m_test.hdf5"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"deepnets1m_test.hdf5: .*cut off"):
        read_all(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_off_configurations_are_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path) / "deepnets1m_test_meta.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"deepnets1m_test_meta.json: not a JSON file, or cut off"):
        read_all(tmp_path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    data, meta = (tmp_path / f"deepnets1m_test{end}" for end in (".hdf5", "_meta.json"))
    good = data.read_bytes(), meta.read_bytes()
    data.write_text("adjacency and nodes")
    with pytest.raises(ValueError, match=r"test.hdf5: not an HDF5 file"):
        read_all(tmp_path)
    with h5py.File(data, "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"test.hdf5: has no split 'test', holds images"):
        read_all(tmp_path)
    data.write_bytes(good[0])
    for text, message in {
        b"\xff\xfe\x00": "not a JSON file",
        b"[1, 2]": "has no splits, holds something else",
        b'{"val": {}}': "has no split 'test', holds val",
        b'{"test": {"meta": {}}}': "needs a list 'nets'",
        b'{"test": {"nets": []}}': "needs a mapping 'meta'",
    }.items():
        meta.write_bytes(text)
        with pytest.raises(ValueError, match=rf"test_meta.json: .*{message}"):
            read_all(tmp_path)


def fewer(content: dict[str, Any]) -> None:
    content["test"]["nets"].pop()


def more(content: dict[str, Any]) -> None:
    content["test"]["nets"].append(content["test"]["nets"][0])


def no_size(content: dict[str, Any]) -> None:
    del content["test"]["nets"][2]["num_nodes"]


def wrong_size(content: dict[str, Any]) -> None:
    content["test"]["nets"][2]["num_nodes"] += 1


def fewer_cells(content: dict[str, Any]) -> None:
    content["test"]["nets"][1]["n_cells"] -= 1


def no_names(content: dict[str, Any]) -> None:
    content["test"]["meta"]["unique_op_names"] = ["input"]


def fewer_names(content: dict[str, Any]) -> None:
    content["test"]["meta"]["unique_op_names"].popitem()


def bad_primitive(content: dict[str, Any]) -> None:
    content["test"]["meta"]["primitives_ext"]["0"] = "lstm"


def bad_parameter(content: dict[str, Any]) -> None:
    names = content["test"]["meta"]["unique_op_names"]
    key = next(k for k, name in names.items() if name.endswith("weight"))
    names[key] = "preprocess0.lstm.weight"


def bad_config(content: dict[str, Any]) -> None:
    content["test"]["nets"][3]["genotype"]["normal"][0][0] = "lstm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, r"test_meta.json: lists 3 architectures of the split 'test', but .* holds 4"),
        (more, r"test_meta.json: lists 5 architectures of the split 'test', but .* holds 4"),
        (no_size, r"test_meta.json: test\[2\]: num_nodes: got None, needs a positive integer"),
        (wrong_size, r"test.hdf5: test/2/adj: got uint8 .*, needs integers"),
        (fewer_cells, r"test.hdf5: test/1/nodes: got the row .* cells"),
        (no_names, r"test_meta.json: needs a mapping .* in 'unique_op_names'"),
        (fewer_names, r"test.hdf5: test/\d/nodes: got the row .* unique_op_names"),
        (bad_primitive, r"test.hdf5: test/0: unknown primitive 'lstm', needs one of max_pool"),
        (bad_parameter, r"test.hdf5: test/\d: its graph is not the one that the configuration"),
        (bad_config, r"test_meta.json: test\[3\]: normal\[0\]: got 'lstm'"),
    ],
)
def test_inconsistent_configurations_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_meta(write(tmp_path) / "deepnets1m_test_meta.json", change)
    with pytest.raises(ValueError, match=message):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("adj", lambda a: a[:, :-1], r"test/1/adj: got uint8 \(\d+, \d+\), needs integers"),
        ("adj", lambda a: a[:-1, :-1], r"test/1/adj: got uint8 .*, needs integers"),
        ("adj", lambda a: a.astype(np.float32), r"test/1/adj: got float32 .*, needs integers"),
        ("adj", lambda a: a.T, r"test/1/adj: got an edge to a node that does not come later"),
        ("adj", np.zeros_like, r"test/1/adj: got nodes without edges"),
        ("adj", lambda a: None, r"test/1: not there, needs 'adj' and 'nodes'"),
        ("nodes", lambda a: a[:-1], r"test/1/nodes: got uint16 \(\d+, 3\), needs integers"),
        ("nodes", lambda a: a[:, :2], r"test/1/nodes: got uint16 \(\d+, 2\), needs integers"),
        ("nodes", lambda a: a + 500, r"test/1/nodes: got the row \(500, 500, 500\)"),
    ],
)
def test_inconsistent_graphs_are_refused(
    tmp_path: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    write(tmp_path)
    with h5py.File(tmp_path / "deepnets1m_test.hdf5", "r+") as file:
        changed = change(file[f"test/1/{name}"][()])
        del file[f"test/1/{name}"]
        if changed is not None:
            file[f"test/1/{name}"] = changed
    nets = DeepNets(tmp_path, "test")
    _ = nets[0].graph
    with pytest.raises(ValueError, match=rf"test.hdf5: {message}"):
        _ = nets[1].graph


def test_files_appear_when_they_are_complete(tmp_path: Path) -> None:
    record = make_record("test", 0, 3)
    with SplitWriter(tmp_path, "test") as writer:
        writer.add(record)
        assert not any(path.name.startswith("deepnets1m") for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {
        "deepnets1m_test.hdf5",
        "deepnets1m_test_meta.json",
    }


def test_errors_discard_and_interrupts_keep(tmp_path: Path) -> None:
    record = make_record("test", 0, 3)
    with pytest.raises(RuntimeError), SplitWriter(tmp_path, "test") as writer:
        writer.add(record)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), SplitWriter(tmp_path, "test"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), SplitWriter(tmp_path, "test") as writer:
        writer.add(record)
        raise KeyboardInterrupt
    assert len(DeepNets(tmp_path, "test")) == 1


@pytest.mark.parametrize("written", [0, 7, 10**6])
def test_an_interrupt_within_an_architecture_drops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The interrupt comes after the graph and before, within, or after the configuration."""
    records = [make_record("test", index, 3) for index in range(3)]
    with pytest.raises(KeyboardInterrupt), SplitWriter(tmp_path, "test") as writer:
        writer.add(records[0])
        writer.add(records[1])
        plain = writer._meta.write

        def interrupted(text: str) -> int:
            plain(text[:written])
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(writer._meta, "write", interrupted)
        writer.add(records[2])
    nets = DeepNets(tmp_path, "test")
    assert len(nets) == 2
    assert [item.config for item in nets] == [record.config for record in records[:2]]
    with h5py.File(tmp_path / "deepnets1m_test.hdf5") as file:
        assert sorted(file["test"]) == ["0", "1"]


def test_existing_files_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    write(tmp_path, count=2)
    with pytest.raises(FileExistsError, match=r"deepnets1m_test.hdf5 exists"):
        SplitWriter(tmp_path, "test")
    with pytest.raises(RuntimeError), SplitWriter(tmp_path, "test", overwrite=True) as writer:
        writer.add(make_record("test", 9, 3))
        raise RuntimeError
    assert len(DeepNets(tmp_path, "test")) == 2
    with SplitWriter(tmp_path, "test", overwrite=True) as writer:
        writer.add(make_record("test", 9, 3))
    assert [item.config for item in DeepNets(tmp_path, "test")] == [sample_config("test", 9, 3)]


def test_unknown_split(tmp_path: Path) -> None:
    for make in (SplitWriter, SplitFile):
        with pytest.raises(ValueError, match="split: got 'tset', needs one of train, val"):
            make(tmp_path, "tset")


@pytest.mark.parametrize("checksums", [True, False])
def test_no_flipped_bit_gives_another_graph(
    tmp_path: Path, checksums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not checksums:
        # As the published generator writes them.
        make = h5py.Group.create_dataset
        monkeypatch.setattr(
            h5py.Group, "create_dataset", lambda self, name, data, **_: make(self, name, data=data)
        )
    generate("val", 6, tmp_path, seed=1)
    monkeypatch.undo()

    def contents() -> list[Any]:
        graphs = [net.graph for net in DeepNets(tmp_path, "val")]
        return [(g.op_types.tolist(), g.edges.tolist(), g.shapes, g.names) for g in graphs]

    path = tmp_path / "deepnets1m_val.hdf5"
    whole, expected = path.read_bytes(), contents()
    rng, refused = random.Random(5), 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert contents() == expected
        except ValueError:
            refused += 1
    assert refused > 10
