"""Runs of many processes: leases of inputs, workers that label them, and a driver that plans and commits."""
