"""Judges and reward tables: pure functions of text and labels."""
