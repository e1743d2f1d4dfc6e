"""The parts of ``benchmarks/estimate.py``: cases, running them, fitting prices."""
