"""Packed files: what is written comes back, in either format alike; damage is named."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import ghn_fast
from ghn_fast.deepnets import (
    ArchItem,
    DeepNets,
    convert,
    describe,
    generate,
    sample_config,
    splits_in,
)
from ghn_fast.deepnets.files.generate import make_record
from ghn_fast.deepnets.files.hdf5 import SplitWriter
from ghn_fast.deepnets.files.node_table import stored_node_order
from ghn_fast.deepnets.files.packed import PackFile, PackWriter, pack_name
from ghn_fast.deepnets.files.writing import make_chunk
from graphs import assert_same_graph

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits, packed."""
    path = tmp_path_factory.mktemp("packed")
    for split in ("train", "wide"):
        generate(split, COUNT, path, seed=5, format="packed")
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the published format."""
    path = tmp_path_factory.mktemp("published")
    for split in ("train", "wide"):
        generate(split, COUNT, path, seed=5, format="hdf5")
    return path


def assert_same_items(one: DeepNets, other: DeepNets) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert_same_item(a, b)


def assert_same_item(a: ArchItem, b: ArchItem) -> None:
    assert (a.index, a.name, a.config, a.widening) == (b.index, b.name, b.config, b.widening)
    assert (a.num_nodes, a.num_params) == (b.num_nodes, b.num_params)
    assert dict(a.base_params) == dict(b.base_params)
    for sizes in ((10, 32), (7, 224)):
        assert_same_graph(a.graph_for(*sizes), b.graph_for(*sizes))


@pytest.mark.parametrize("split", ["train", "wide"])
@pytest.mark.parametrize("virtual_edges", [1, 50])
def test_both_formats_give_the_same_items(
    folder: Path, published: Path, split: str, virtual_edges: int
) -> None:
    packed = DeepNets(folder, split, virtual_edges)
    assert_same_items(packed, DeepNets(published, split, virtual_edges))
    assert [item.config for item in packed] == [sample_config(split, i, 5) for i in range(COUNT)]


def test_the_reference_gives_the_same_items(folder: Path) -> None:
    with ghn_fast.backend("reference"):
        expected = list(DeepNets(folder, "train")[:3])
        for item in expected:
            assert item.graph.plan is None
            item.graph_for(7, 224)
    for item, other in zip(DeepNets(folder, "train")[:3], expected, strict=True):
        assert_same_graph(item.graph, other.graph)


def test_the_reference_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    with ghn_fast.backend("reference"):
        path = generate("train", COUNT, tmp_path, seed=5, format="packed")
    assert path.read_bytes() == (folder / path.name).read_bytes()


def test_numbers_beside_the_configurations(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    file = nets.file
    assert isinstance(file, PackFile)
    assert (file.split, file.seed, len(file)) == ("train", 5, COUNT)
    sizes = nets.all_nodes()
    assert sizes is not None
    for index, item in enumerate(nets):
        assert nets.num_nodes(index) == sizes[index] == item.graph.num_nodes
        assert item.base_params == make_record("train", index, 5).num_params
    assert describe(nets) == describe(list(nets))
    assert describe(DeepNets(folder, "wide")) == describe(list(DeepNets(folder, "wide")))


def test_a_record_takes_less_than_200_bytes(folder: Path) -> None:
    """A million architectures would have to fit into 2 GB."""
    assert (folder / pack_name("train")).stat().st_size < 128 + 200 * COUNT


def test_files_are_found(folder: Path, published: Path, tmp_path: Path) -> None:
    assert splits_in(folder) == ["train", "wide"]
    assert splits_in(folder / pack_name("wide")) == ["wide"]
    renamed = tmp_path / "any name"
    renamed.write_bytes((folder / pack_name("train")).read_bytes())
    assert splits_in(renamed) == ["train"]
    assert len(DeepNets(renamed, "train")) == COUNT
    # Of two formats in a folder, the packed one is read.
    generate("train", 3, tmp_path, format="packed")
    for path in published.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(DeepNets(tmp_path, "train")) == 3
    assert len(DeepNets(tmp_path / "deepnets1m_train.hdf5", "train")) == COUNT
    assert splits_in(tmp_path) == ["train", "wide"]


def test_items_and_files_can_be_pickled(folder: Path) -> None:
    nets = DeepNets(folder, "train")
    copies = pickle.loads(pickle.dumps(nets))
    assert_same_items(copies, nets)
    data = pickle.dumps(nets[3])
    assert len(data) < 5000
    copy = pickle.loads(data)
    assert copy.file is None
    assert_same_item(copy, nets[3])


def rewrite(data: bytearray, at: int, fmt: str, value: object) -> None:
    """Change a field of the header, and its checksum with it."""
    struct.pack_into(fmt, data, at, value)
    struct.pack_into("<I", data, 124, zlib.crc32(data[:124]))


def flip(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 0x10

    return change


def cut(to: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[to:]

    return change


DAMAGE: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "empty": (cut(0), "cut off: has 0 bytes, needs at least 128"),
    "half a header": (cut(100), "cut off: has 100 bytes, needs at least 128"),
    "only a header": (cut(128), "cut off: has 128 bytes, needs "),
    "one byte short": (cut(-1), r"cut off: has \d+ bytes, needs \d+"),
    "longer": (lambda data: data.extend(b"\0"), r"longer than written: has \d+ bytes, needs"),
    "magic": (flip(0), "not a packed file: begins with"),
    "version": (lambda d: rewrite(d, 8, "<I", 2), "has version 2 of the packed layout, needs 1"),
    "header": (flip(33), "damaged: the checksum of the header is"),
    "a record": (flip(150), "damaged: the checksum of the records is"),
    "the index": (flip(-3), "damaged: the checksum of the index is"),
    "count": (lambda d: rewrite(d, 40, "<Q", COUNT + 1), "its sections do not fit each other"),
    "no architectures": (lambda d: rewrite(d, 40, "<Q", 0), "its sections do not fit each other"),
    "offset": (lambda d: rewrite(d, 64, "<Q", 1 << 40), "its sections do not fit each other"),
    "split": (lambda d: rewrite(d, 16, "16s", b"huge"), "split: got 'huge', needs one of"),
    "another split": (lambda d: rewrite(d, 16, "16s", b"val"), "no split 'train', holds val"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    path = tmp_path / pack_name("train")
    data = bytearray((folder / path.name).read_bytes())
    change(data)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as info:
        DeepNets(tmp_path, "train")
    assert damage == "split" or str(path) in str(info.value)


def test_every_flipped_bit_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / pack_name("train")
    data = (folder / path.name).read_bytes()
    file = PackFile(folder / path.name)
    stop, index = 128 + len(file.chunk(0, COUNT).records), len(data) - COUNT * 28
    padding = range(stop, index)
    assert len(padding) < 8
    for at in range(len(data)):
        if at not in padding:
            broken = bytearray(data)
            broken[at] ^= 1 << at % 8
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=r"deepnets1m_train.ghnpack: "):
                PackFile(path)


def test_a_valid_file_with_an_invalid_configuration(tmp_path: Path) -> None:
    """What another program wrote, checksums and all."""
    chunk = make_chunk([sample_config("train", 0, 0)])
    for records in (chunk.records[:24] + b"\x0f" + chunk.records[25:], chunk.records[:-2]):
        with PackWriter(tmp_path, "train", overwrite=True) as writer:
            ends = chunk.ends - len(chunk.records) + len(records)
            writer.add(replace(chunk, records=records, ends=ends))
        with pytest.raises(ValueError, match=rf"{pack_name('train')}: train\[0\]: "):
            _ = DeepNets(tmp_path, "train")[0]


def test_other_files_are_no_packed_ones(published: Path, tmp_path: Path) -> None:
    path = tmp_path / pack_name("train")
    path.write_bytes((published / "deepnets1m_train.hdf5").read_bytes())
    with pytest.raises(ValueError, match="not a packed file: begins with"):
        DeepNets(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"deepnets1m_val.ghnpack or .*val.hdf5"):
        DeepNets(tmp_path, "val")


def test_nothing_appears_before_it_is_complete(tmp_path: Path) -> None:
    chunk = make_chunk([sample_config("train", 0, 0)])
    with pytest.raises(OSError, match="no space"), PackWriter(tmp_path, "train") as writer:
        writer.add(chunk)
        assert not (tmp_path / pack_name("train")).exists()
        raise OSError("no space")
    assert not any(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), PackWriter(tmp_path, "train") as writer:
        writer.add(chunk)
        raise KeyboardInterrupt
    assert len(DeepNets(tmp_path, "train")) == 1
    assert len(list(tmp_path.iterdir())) == 1
    with PackWriter(tmp_path / "none", "train"):
        pass
    assert not any((tmp_path / "none").iterdir())
    with pytest.raises(FileExistsError, match=r"deepnets1m_train.ghnpack exists"):
        PackWriter(tmp_path, "train")
    with pytest.raises(ValueError, match="split: got 'predefined'"):
        PackWriter(tmp_path, "predefined")


def test_a_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    generate("train", 5, tmp_path, format="packed")
    before = DeepNets(tmp_path, "train")
    generate("train", 2, tmp_path, seed=9, format="packed", overwrite=True)
    assert before[4].config == sample_config("train", 4, 0)
    assert len(DeepNets(tmp_path, "train")) == 2


# --- conversion


def test_converted_files_give_the_same_items(folder: Path, published: Path, tmp_path: Path) -> None:
    for split in ("train", "wide"):
        packed = convert(published, split, tmp_path / "packed")
        back = convert(tmp_path / "packed", split, tmp_path / "back", "hdf5")
        assert_same_items(DeepNets(packed, split), DeepNets(published, split))
        assert_same_items(DeepNets(back, split), DeepNets(published, split))
        # The seed is not known from the published format.
        assert PackFile(packed).seed is None
        assert packed.read_bytes()[128:] == (folder / packed.name).read_bytes()[128:]
        again = convert(folder, split, tmp_path / "again")
        assert again.read_bytes() == (folder / again.name).read_bytes()
        stem = f"deepnets1m_{split}"
        old, new = (
            json.loads((path / f"{stem}_meta.json").read_text())
            for path in (published, back.parent)
        )
        assert old == new


def check_published(folder: Path, tmp_path: Path) -> None:
    """Nodes that the published generator listed cell by cell stay where they were."""
    for split in splits_in(folder):
        packed = convert(folder, split, tmp_path / "packed")
        back = convert(packed, split, tmp_path / "back", "hdf5")
        stored = DeepNets(folder, split)
        for path in (packed, back):
            assert_same_items(DeepNets(path, split), stored)
            assert_same_items(
                DeepNets(path, split, reorder=True), DeepNets(folder, split, reorder=True)
            )
        file = PackFile(packed)
        flags = [file.by_cell(index) for index in range(len(file))]
        assert any(flags)
        item = DeepNets(packed, split)[flags.index(True)]
        copy = pickle.loads(pickle.dumps(item))
        assert copy.graph.names == item.graph.names
        true = DeepNets(packed, split, reorder=True)[item.index].graph
        assert item.config is not None
        order = stored_node_order(true, item.config.n_cells)
        assert item.graph.names == tuple(true.names[node] for node in order) != true.names


def test_published_files_convert(small_fixtures_dir: Path, tmp_path: Path) -> None:
    check_published(small_fixtures_dir / "deepnets", tmp_path)


def test_all_published_files_convert(fixtures_dir: Path, tmp_path: Path) -> None:
    check_published(fixtures_dir / "deepnets", tmp_path)


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    record = make_record("val", 0, 0)
    matrix = record.matrix.copy()
    matrix[matrix > 1] += 1
    with SplitWriter(tmp_path, "val") as writer:
        writer.add(record)
        writer.add(replace(record, matrix=matrix))
    with pytest.raises(ValueError, match=r"val/1: its distances are not those of its edges"):
        convert(tmp_path, "val", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="format: got 'zip', needs one of auto, packed, hdf5"):
        convert(tmp_path, "val", tmp_path / "out", "zip")
    with pytest.raises(FileExistsError, match=r"deepnets1m_val.hdf5 exists"):
        convert(tmp_path, "val", tmp_path)


def test_a_split_has_one_format(tmp_path: Path) -> None:
    generate("val", 2, tmp_path)
    assert splits_in(tmp_path) == ["val"]
    before = set(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=r"deepnets1m_val.hdf5 exists; remove it"):
        generate("val", 3, tmp_path, format="packed")
    assert set(tmp_path.iterdir()) == before
    generate("val", 3, tmp_path, format="packed", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [pack_name("val")]
    with pytest.raises(FileExistsError, match=r"deepnets1m_val.ghnpack exists; remove it"):
        generate("val", 2, tmp_path)
    convert(tmp_path, "val", tmp_path, "hdf5", overwrite=True)
    assert len(DeepNets(tmp_path, "val")) == 3
    assert not (tmp_path / pack_name("val")).exists()


@pytest.mark.parametrize("how", ["cut", "shorter", "other"])
def test_a_file_that_changes_while_it_is_open_is_refused(tmp_path: Path, how: str) -> None:
    generate("train", 40, tmp_path / "a", seed=1)
    path = tmp_path / "a" / pack_name("train")
    nets = DeepNets(path.parent, "train")
    assert nets[3].graph.num_nodes > 0
    if how == "cut":
        os.truncate(path, 200)
    else:
        generate("train", 20 if how == "shorter" else 40, tmp_path / "b", seed=2)
        path.write_bytes((tmp_path / "b" / pack_name("train")).read_bytes())
    with pytest.raises(ValueError, match=r"train.ghnpack: was changed while it was open"):
        nets[35].graph  # noqa: B018
