"""Generation: the engine protocol, the embedded engine, and the programs that turn prompts into groups of rollouts."""
