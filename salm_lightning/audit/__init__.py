"""Audits: whether the protection of a release holds, and whether its images are still useful."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
