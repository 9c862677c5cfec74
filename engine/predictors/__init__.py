"""Predictors: models, text models and score files that turn an image into class scores."""
