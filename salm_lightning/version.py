"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("salm-lightning")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
