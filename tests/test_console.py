"""What is said on a terminal: names from files are shown, whatever they hold."""

from __future__ import annotations

import pytest
from rich.console import Console

from salm_lightning.console import cell, metrics_table, say, visible

EVIL = "[/red][bold]:smile: \x1b]0;title\x07\x9b2J\u202e\r end"
SHOWN = r"[/red][bold]:smile: \x1b]0;title\x07\x9b2J\u202e\r end"


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible("± 3 % of a\nb") == r"± 3 % of a\nb"
    say(f"first\n{EVIL}")
    assert capsys.readouterr().out == f"first\n{SHOWN}\n"


def test_markup_in_a_table_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=200, emoji=False).print(metrics_table(EVIL, "", {EVIL: {"acc": 0.5, "auc": None}}, 1))
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == 2
    assert "50.0%" in shown
    Console(width=200, emoji=False).print(cell(EVIL))
    assert capsys.readouterr().out.strip() == SHOWN
