"""Cases, toolkits and explanations of `benchmarks/verifiers.py`."""
