"""Records of an evaluation in a file, so that one that was interrupted goes on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from ghn_fast.utils import distributed
from ghn_fast.utils.json_files import to_json
from ghn_fast.utils.json_lines import read_lines
from ghn_fast.vision.results import ArchitectureResult


class RecordFile:
    """A context that keeps records of an evaluation in files until it is left without an error.

    Of several processes none may leave it before the results are written.

    Its files are ``FOLDER/STEM.DIGEST.part-RANK.jsonl``, one of each process, with a record a line.
    The digest is that of the identity, so that evaluations of something else never meet. A record
    that cannot be written is a warning: the evaluation itself goes on.

    Args:
        folder: Where the results will be; made when the first record comes.
        stem: Name of the results.
        identity: What two evaluations have to share for records of one to serve the other, of
            values that JSON knows.
    """

    def __init__(self, folder: Path, stem: str, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(to_json(dict(sorted(identity.items()))).encode()).hexdigest()[:12]
        self._folder = folder
        self._name = f"{stem}.{digest}.part-"
        self._warned = False

    def known(self, architectures: Mapping[int, str]) -> dict[int, ArchitectureResult]:
        """The records that are there, by the index of their architecture, without failed ones.

        Args:
            architectures: What :meth:`add` was told of each, by its index; others are left out.
        """
        found = {}
        for path in self._paths():
            for line in read_lines(path, "index"):
                architecture = line.pop("architecture", None)
                try:
                    record = ArchitectureResult(**line)
                except TypeError:  # not one of these
                    continue
                if record.error is None and architectures.get(record.index) == architecture:
                    found[record.index] = record
        return found

    def add(self, record: ArchitectureResult, architecture: str) -> None:
        """Write a record down.

        Args:
            record: The record.
            architecture: What tells its architecture from others of the same index.
        """
        line = {**asdict(record), "architecture": architecture}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}{distributed.rank()}.jsonl"
            with open(path, "a+b") as file:
                # A line that a process did not live to end stays by itself.
                file.seek(0, 2)
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(to_json(line).encode() + b"\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"results so far cannot be kept ({error}): an interruption loses them",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for path in self._paths():
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(p for p in self._folder.iterdir() if p.name.startswith(self._name))
