"""LightningModules: the noise generator and the victim."""

from salm_lightning.modules.noise_generator import NoiseGeneratorModule
from salm_lightning.modules.schedule import FractionalStepLR
from salm_lightning.modules.victim import VictimModule

__all__ = ["FractionalStepLR", "NoiseGeneratorModule", "VictimModule"]
