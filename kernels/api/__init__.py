"""Public kernel functions, one module per kernel; import them from :mod:`maskmill.kernels`."""
