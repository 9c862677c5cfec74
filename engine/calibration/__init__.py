"""Calibration: thresholds from labeled images, evidence of how they hold, and detection of drift."""
