"""Argument checks, constants and tables that every form of a kernel shares."""
