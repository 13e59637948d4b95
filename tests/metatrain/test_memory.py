"""Memory of freed tensors that is kept: in processes of their own, for it is for good."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ghn_fast.metatrain.memory import settled
from ghn_fast.ops.backend import extension_problem

needs_extension = pytest.mark.skipif(
    extension_problem() is not None, reason=str(extension_problem())
)


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_extension
def test_freed_memory_comes_again_and_is_bounded() -> None:
    run(
        """
import torch
from ghn_fast.metatrain.memory import keep_freed_memory
from ghn_fast.ops.backend import extension
before = torch.arange(1000.0)
keep_freed_memory()
keep_freed_memory()
used, kept = extension.module.cached_cpu_memory()
assert (used, kept) == (0, 0), (used, kept)
x = torch.empty(300_000)
first = x.data_ptr()
assert first % 64 == 0
used, kept = extension.module.cached_cpu_memory()
assert 1_200_000 <= used <= 1_200_000 * 9 / 8 and kept == 0, (used, kept)
del x
assert extension.module.cached_cpu_memory() == (0, used)
assert torch.empty(299_000).data_ptr() == first
# Sizes never seen before, one after the other: what is kept does not grow without end.
for size in range(1, 4000):
    torch.empty(size * 10_000)
used, kept = extension.module.cached_cpu_memory()
assert used == 0 and kept <= (64 << 20) + 2 * 160_000_000, kept
# Tensors that were there before are freed as they were made; all sizes hold what is written.
del before
for size in (0, 1, 15, 16, 17, 1023, 1024, 1025, 123_457):
    a, b = torch.full((size,), 3.0), torch.full((size,), 4.0)
    assert bool((a == 3).all()) and bool((b == 4).all())
    a.untyped_storage().resize_(4 * size + 400)
    assert bool((a == 3).all())
"""
    )


@needs_extension
def test_many_threads() -> None:
    run(
        """
import threading, torch
from ghn_fast.metatrain.memory import keep_freed_memory
from ghn_fast.ops.backend import extension
keep_freed_memory()
wrong = []
def work(seed):
    generator = torch.Generator().manual_seed(seed)
    held = []
    for _ in range(2000):
        size = int(torch.randint(1, 5000, (), generator=generator))
        held.append((torch.full((size,), float(seed)), seed))
        if len(held) > 20:
            tensor, value = held.pop(int(torch.randint(0, 20, (), generator=generator)))
            if not bool((tensor == value).all()):
                wrong.append(seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
assert extension.module.cached_cpu_memory()[0] == 0
"""
    )


@needs_extension
def test_a_fork_while_other_threads_allocate() -> None:
    run(
        """
import os, threading, torch
from ghn_fast.metatrain.memory import keep_freed_memory
keep_freed_memory()
stop = threading.Event()
def work():
    while not stop.is_set():
        torch.empty(2000)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
children = []
for _ in range(40):
    child = os.fork()
    if child == 0:
        ok = bool((torch.full((3000,), 2.0) == 2).all())
        os._exit(0 if ok else 1)
    children.append(child)
stop.set()
for thread in threads: thread.join()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""
    )


@needs_extension
def test_too_large_a_tensor_is_still_an_error() -> None:
    run(
        """
import torch
from ghn_fast.metatrain.memory import keep_freed_memory
from ghn_fast.metatrain.candidate_run import is_out_of_memory
from ghn_fast.ops.backend import extension
keep_freed_memory()
try:
    torch.empty(2**50)
except RuntimeError as error:
    assert is_out_of_memory(error), error
else:
    raise SystemExit("nothing was raised")
assert extension.module.cached_cpu_memory() == (0, 0)
assert float(torch.ones(10).sum()) == 10
"""
    )


def test_the_collector_is_as_before_when_training_ends() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(RuntimeError), settled():
        assert gc.get_freeze_count() > frozen
        with settled():
            pass
        assert gc.get_freeze_count() > frozen
        raise RuntimeError
    assert gc.get_freeze_count() == frozen == 0
