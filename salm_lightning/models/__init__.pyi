from .architecture import ARCHITECTURES, Architecture, NetworkFactory
from .backbones import Classifier

__all__ = ["ARCHITECTURES", "Architecture", "Classifier", "NetworkFactory"]
