from .manifest import Bound, Manifest, Measured
from .measure import Meter
from .parts import Parts
from .poisoned import PoisonedDataModule
from .verify import Check, verify_release
from .writer import check_destination, write_release

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
