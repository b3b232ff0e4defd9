"""What a recipe is, and what happens around every one of them.

A recipe is a class: presets, and a problem that `fit` can train. Training, resuming, measuring,
replaying and branching are here once, and work on every recipe, one's own included.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
