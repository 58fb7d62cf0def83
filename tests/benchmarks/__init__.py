"""Speed and memory, measured: `python -m tests.benchmarks` (extra `bench`); see __main__.py."""
