"""The process world: device, process groups, seeds."""
