"""Rasters: images of any number of bands."""
