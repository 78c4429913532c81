"""Test the program's reliability under many faults and attacks: `python -m benchmarks.soak`."""
