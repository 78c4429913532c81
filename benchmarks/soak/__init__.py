"""Try faults and attacks many times: `python -m benchmarks.soak`."""
