"""The export gate: compare an exported or converted model with its original, and record the verdict."""
