"""``salm-cli``: the first word chooses what is imported and run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from salm_lightning.errors import SalmError, look_up

INTERRUPTED = 128 + 15
"""Exit code of a run that saved its state on SIGTERM, as a shell reports it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``salm-cli``.

    Args:
        args: Command-line arguments; ``None`` takes them from the process.

    Returns:
        Exit code: 0 on success, 1 when ``verify`` finds a fault, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    from salm_lightning import commands
    from salm_lightning.cli.fit import HELP

    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(commands.overview(HELP))
        return 0 if arguments else 2
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from salm_lightning.cli.config_files import resolve_configs
    from salm_lightning.cli.fit import SalmCLI
    from salm_lightning.interruption import Interrupted, interruptible
    from salm_lightning.runs.quiet import quieten

    quieten()
    torch.set_float32_matmul_precision("high")
    try:
        if arguments[0] in HELP or arguments[0].startswith("-"):
            SalmCLI(resolve_configs(arguments))
            return 0
        look_up("command", arguments[0], [*HELP, *commands.COMMANDS])
        with interruptible():
            return commands.run(arguments[0], resolve_configs(arguments)[1:])
    except (SalmError, MisconfigurationException, OSError) as error:
        sys.stderr.write(f"salm-cli: error: {error}\n")
        return 2
    except (SIGTERMException, Interrupted) as interruption:
        sys.stderr.write(f"salm-cli: interrupted; {_way_on(arguments[0] in HELP, bool(interruption.code))}.\n")
        return int(interruption.code or INTERRUPTED)
    except KeyboardInterrupt:
        return 130


def _way_on(is_fit: bool, saved: bool) -> str:
    """Return what to do after an interruption; a Trainer without a RunCheckpoint has saved nothing."""
    if not is_fit or not saved:
        return "repeat the command"
    return "the state is saved. Go on with --ckpt_path and the run's folder"
