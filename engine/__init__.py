"""The labeling engine: decode → predict → select → weight → write, calibrated and resumable. Never imports torch."""
