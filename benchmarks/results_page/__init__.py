"""The parts of `benchmarks/results.py`: records, numbers from them, sections and pictures made of the numbers."""
