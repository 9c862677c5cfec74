"""Commands that label a corpus and check the labels."""
