"""Commands: the only files with absl flags."""
