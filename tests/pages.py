"""The shell blocks of the documentation's pages, read as a shell reads them, and commands that only read their arguments."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
SHOW = "salm-cli() { printf '%s\\0' \"$@\"; echo; }"
"""A shell function that takes the program's place."""


def shell_commands(page: str) -> list[list[str]]:
    """Return the arguments of every ``salm-cli`` that Bash would start itself on a page, loops and variables included.

    Nothing else is found on the path. A block has a shell of its own, because a batch script ends with ``exit``.
    """
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = [f"(\n{block}\n)" for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)]
    command = [str(shutil.which("bash")), "-c", "\n".join([SHOW, *blocks])]
    shown = subprocess.run(command, env={"PATH": "/nowhere"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [line.split("\0")[:-1] for line in shown.stdout.splitlines()]


def only_read(function: Any, taken: list[dict[str, Any]]) -> Any:
    """Return a command that does nothing but add to ``taken`` what it is given, as ``function`` would be."""

    @functools.wraps(function)
    def read(**given: Any) -> int:
        inspect.signature(function).bind(**given)
        taken.append(given)
        return 0

    return read
