"""The asv suite: every case of benchmarks/suite/cases.py, timed; the guarded ones counted, too."""
