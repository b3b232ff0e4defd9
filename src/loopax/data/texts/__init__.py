"""Texts with classes, from tables."""
