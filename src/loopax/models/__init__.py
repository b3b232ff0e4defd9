"""Flax modules, and nothing else: each is a plain `nn.Module` that runs without loopax."""
