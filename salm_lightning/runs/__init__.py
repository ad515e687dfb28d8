"""Runs: what identifies one, what became of it, how its models are trained, and how long it takes."""
