"""A stand-in for lmms-eval in tests: takes its command line and copies made-up results."""
