"""Label store: labels, inputs and reviews in a folder of Lance datasets, their verification and their export."""
