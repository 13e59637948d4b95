"""Triton kernels of ghn_fast, one file per op, imported as ``ghn_fast.kernels``.

The directory stands beside ``csrc/`` at the top of the repository and is mapped into the package
by setup.py. Importing it loads no kernel and needs no Triton: the modules of ``ghn_fast.ops``
import the kernel that they attach, and only where Triton is available.
"""
