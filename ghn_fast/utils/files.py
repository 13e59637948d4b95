"""What writers of files have in common: a file is complete, or it is not there."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class WholeFileWriter:
    """A context that ends with :meth:`close`, or after an error with :meth:`discard`.

    An interrupt is no error: what was finished before it is kept.
    """

    def close(self) -> None:
        """Complete the file and put it in its place."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what was written so far."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.close()
        else:
            self.discard()
