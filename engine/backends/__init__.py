"""Backends: where images and scores reside and what works on them there, on the host or on an NVIDIA GPU."""
