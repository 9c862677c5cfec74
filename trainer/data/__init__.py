"""Training data: labeled folders, label stores and unlabeled images, drawn, augmented and collated into batches."""
