"""One module per measurement of experiments.benchmark."""
