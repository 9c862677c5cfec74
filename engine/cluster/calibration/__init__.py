"""Calibration by several processes: workers run the model, one process fits the thresholds."""
