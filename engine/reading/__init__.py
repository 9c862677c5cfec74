"""Bounded reads of local files, and of files behind URLs with time limits and retries."""
