"""Finished rows that wait in files for a commit, so that a killed process loses none and commits may be large."""
