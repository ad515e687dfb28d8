"""A protected dataset on disk: writing it, checking it, and training on it."""

from salm_lightning.release.manifest import Manifest
from salm_lightning.release.measure import Bound, Measured, Meter
from salm_lightning.release.parts import Parts
from salm_lightning.release.poisoned import PoisonedDataModule
from salm_lightning.release.verify import Check, verify_release
from salm_lightning.release.writer import check_destination, write_release

__all__ = [
    "Bound",
    "Check",
    "Manifest",
    "Measured",
    "Meter",
    "Parts",
    "PoisonedDataModule",
    "check_destination",
    "verify_release",
    "write_release",
]
