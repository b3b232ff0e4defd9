"""loopax: the training loop for JAX.

Everything public is named in `__init__.pyi`; importing it is free, each name is loaded when it is
first used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
