"""What the training loop reads: batches as a function of (seed, step). No file formats."""
