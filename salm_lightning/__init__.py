"""SALM: make medical image datasets unlearnable with sparsity-aware local masking (arXiv 2403.10573)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
