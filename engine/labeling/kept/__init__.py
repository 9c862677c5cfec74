"""Kept scores: what a label run stores of the class scores of an image, for later selections."""
