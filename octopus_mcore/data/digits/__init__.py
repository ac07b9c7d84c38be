"""The miniature of the method: real handwritten digits, a question that invites calculation, and a checkpoint small enough for a CPU."""
