"""Experiments as configs; each header gives command, hardware and result."""
