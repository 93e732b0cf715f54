"""The trainer: network, losses, pairs, loop."""
