"""How a perturbation is made: pure torch functions and small objects, no Lightning."""
