"""Looking at a step or a run: where a NaN began, any step again, what a step costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
