"""The paper's thirteen public benchmarks, run by other people's harnesses and read back here."""
