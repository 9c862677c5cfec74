"""Bounded reads of files: here, and behind URLs with time limits and retries."""
