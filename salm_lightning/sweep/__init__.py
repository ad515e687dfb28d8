"""Sweeps: a grid over the options of ``salm-cli fit``, planned, run as separate fits, and put together into one table."""
