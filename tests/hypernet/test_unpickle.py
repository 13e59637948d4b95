"""Files of weights that are pickles: what is read, and what is refused before it runs."""

from __future__ import annotations

import argparse
import bz2
import gzip
import lzma
import os
import pickle
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast.hypernet.unpickle import load


def dump(value: Any, path: Path, pack: Callable[[bytes], bytes] = bytes) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(pack(pickle.dumps(value)))
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zlib.compress, bz2.compress, lzma.compress])
def test_plain_pickles(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).t(), "c": torch.randn(6)[2:4].half()}
    read = load(dump(OrderedDict(weights), tmp_path / "w.pt", pack))
    assert list(read) == list(weights)
    for name, value in weights.items():
        assert torch.equal(read[name], value)
        assert read[name].dtype == value.dtype


def test_parameters_and_settings(tmp_path: Path) -> None:
    value = {"state_dict": {"w": torch.nn.Parameter(torch.ones(2))}, "config": {"hid": 8}}
    read = load(dump(value, tmp_path / "w.pt"))
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))
    assert read["config"] == {"hid": 8}


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_with_a_namespace(tmp_path: Path, zipped: bool) -> None:
    value = {"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)}
    path = tmp_path / "w.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load(path)["state_dict"]["w"], torch.ones(2))


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, exec, getattr, torch.load, open])
def test_no_name_but_those_of_tensors(tmp_path: Path, function: Callable[..., Any]) -> None:
    folder = tmp_path / "ran"
    for value in (Calls(function, str(folder)), {"w": [Calls(function, str(folder))]}):
        with pytest.raises(
            ValueError, match=r"loaded safely: it names '.*', which is not part"
        ) as e:
            load(dump(value, tmp_path / "evil.pt"))
        assert "\n" not in str(e.value)
    assert not folder.exists()


def _tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Calls:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.arange(4.0).storage()
    return Calls(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict()
    )


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (1 << 60,), (0,)),
     (0, (2,), (1, 1)), (0, (3, 3), (1 << 40, 1))],
)  # fmt: skip
def test_tensors_that_leave_their_storage(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="loaded safely"):
        load(dump({"w": _tensor(offset, size, stride)}, tmp_path / "w.pt"))


@pytest.mark.parametrize(
    "text",
    [
        # A name whose attributes are changed, and one that is no tensor's.
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x08__code__NsN\x86b.",
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x0c__defaults__)s\x86b.",
        b"\x80\x04ctorch.storage\n_load_from_bytes\n(N\x85R.",
        b"\x80\x04cbuiltins\nprint\n)R.",
        b"\x80\x04Pid\n.",
        b"\x80\x04.",
        b"",
        b"not a pickle",
        b"\x1f\x8bnot compressed",
        b"PK\x03\x04not an archive",
    ],
)
def test_broken_and_hostile_pickles(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="loaded safely"):
        load(path)


def test_what_grows_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(zlib.compress(bytes(1 << 27)))
    with pytest.raises(ValueError, match="grows to more than"):
        load(path)


def test_cut_off_files(tmp_path: Path) -> None:
    path = dump({"w": torch.randn(50)}, tmp_path / "w.pt")
    whole = path.read_bytes()
    for length in range(1, len(whole), 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="loaded safely"):
            load(path)
