"""Conversion of a bundle's graphs to lower precision: 16 bits, int8 and fp8."""
