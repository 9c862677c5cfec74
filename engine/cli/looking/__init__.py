"""Commands that show and rank labels."""
