"""Squared Jacobians without Jacobians, for the layers that multiply by their weights."""
