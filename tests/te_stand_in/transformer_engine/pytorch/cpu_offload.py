"""Activation offload, not used."""
