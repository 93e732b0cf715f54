"""The gate: NumPy reference, CUDA source and launchers (a later issue fills this room)."""
