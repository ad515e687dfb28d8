from .run import audit

__all__ = ["audit"]
