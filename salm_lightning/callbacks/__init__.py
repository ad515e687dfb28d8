"""What is shown and logged beside the training itself."""

from salm_lightning.callbacks.pictures import NoisePictures
from salm_lightning.callbacks.progress import PlainProgress, RunProgressBar, progress_bar
from salm_lightning.callbacks.throughput import Throughput

__all__ = ["NoisePictures", "PlainProgress", "RunProgressBar", "Throughput", "progress_bar"]
