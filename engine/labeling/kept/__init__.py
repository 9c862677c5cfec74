"""Kept scores: what a label run stores of an image's class scores, and other selections made from it."""
