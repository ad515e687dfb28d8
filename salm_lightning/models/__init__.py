"""Image classifiers, for source models and victims alike: by name, or by the path of a class."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
