"""Label store: labels, inputs and reviews in a folder of Lance datasets, and their verification."""
