from .architecture import ARCHITECTURES, Architecture, NetworkFactory
from .classifier import Classifier

__all__ = ["ARCHITECTURES", "Architecture", "Classifier", "NetworkFactory"]
