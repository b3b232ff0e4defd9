"""A class-conditional VAE: train it, sample it, see what it reconstructs, measure it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
