"""Backends: memory for images and scores, and the functions that process them there, on the host or an NVIDIA GPU."""
