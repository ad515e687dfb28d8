"""Python runs this when it starts: the fits of a sweep, which are processes of their own, are killed at one of their changes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if "STORM_KILL" in os.environ and "fit" in sys.orig_argv:
    import strikes

    strikes.strike_at(Path(os.environ["STORM_PLACE"]), int(os.environ["STORM_KILL"]), strikes.kill)(0)
