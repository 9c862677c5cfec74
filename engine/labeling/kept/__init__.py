"""Kept scores: the part of an image's class scores that a label run stores for later selections."""
