"""Estimates with their errors, from losses and from answers."""
