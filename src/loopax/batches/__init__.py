"""The food of the loop: batches as a function of (seed, step); no file formats."""
