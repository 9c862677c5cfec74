"""From a model to a bundle: adopt or export it, compare it with the original, build engines for it.

``bundle`` says what a model is (standard library only, imported by everybody); the other modules make bundles.
"""
