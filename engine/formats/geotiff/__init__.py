"""Label maps as GeoTIFF files."""
