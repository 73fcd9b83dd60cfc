"""The cases of benchmarks/faults.py: what is done to the package, and what it must do then."""
