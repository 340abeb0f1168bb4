"""Training: optimizer, per-device step, drivers, loop and writers."""
