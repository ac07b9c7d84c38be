"""Public benchmarks: files as they are published in, questions, grades and the benchmark's own metrics out."""
