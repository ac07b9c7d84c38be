"""The miniature of the method: real handwritten digits, a question to calculate, and a checkpoint small enough for a CPU."""
