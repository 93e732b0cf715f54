"""The gate: NumPy reference, CUDA source, its build, launchers and TensorRT plugin."""
