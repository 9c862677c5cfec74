"""Export of pretrained checkpoints to bundles, one module per family of models."""
