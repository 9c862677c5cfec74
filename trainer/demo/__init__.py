"""The demonstration: a small teacher labels the eastern hemisphere of the Earth, and a student learns from its
labels.
"""
