"""Clients of HTTP services that are not rollout engines: judges and chat models."""
