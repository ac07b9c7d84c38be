"""The loops: supervised and reinforcement phases, evaluation, generation."""
