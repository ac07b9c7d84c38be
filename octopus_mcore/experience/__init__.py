"""Prompts, rollouts, spans and groups, and the buffer that turns judged groups into a training signal."""
