"""The report: a release and its audit as one HTML file."""

from salm_lightning.report.evidence import Evidence, default_audit, gather
from salm_lightning.report.page import missing, render

__all__ = ["Evidence", "default_audit", "gather", "missing", "render"]
