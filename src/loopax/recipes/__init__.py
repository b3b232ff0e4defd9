"""Whole trainings, made of loopax's public names only."""
