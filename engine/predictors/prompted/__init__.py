"""Predictors that prompt a segmentation model: with points, boxes or masks from classifiers, detectors or files."""
