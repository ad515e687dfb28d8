"""The report: a release and its audit as one HTML file."""

from salm_lightning.report.evidence import Evidence, gather
from salm_lightning.report.page import missing, placeholder, render

__all__ = ["Evidence", "gather", "missing", "placeholder", "render"]
