"""``python -m salm_lightning`` is ``salm-cli``."""

import sys

from salm_lightning.main import main

if __name__ == "__main__":
    sys.exit(main())
