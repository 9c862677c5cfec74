"""Labels of another selection from kept scores, without the model."""
