"""Methods, one file each, behind the interface in ``base``."""

from salm_lightning.noise.methods.base import Method, Perturbation
from salm_lightning.noise.methods.em import EM
from salm_lightning.noise.methods.random import Random
from salm_lightning.noise.methods.salm import SALM
from salm_lightning.noise.methods.sp import SP
from salm_lightning.noise.methods.tap import TAP

__all__ = ["EM", "SALM", "SP", "TAP", "Method", "Perturbation", "Random"]
