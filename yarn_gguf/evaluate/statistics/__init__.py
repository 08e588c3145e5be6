"""Estimates with their standard errors, from losses and from answers."""
