"""The parts of ``benchmarks/step.py``: shapes, counts, ways to take a step, memory."""
