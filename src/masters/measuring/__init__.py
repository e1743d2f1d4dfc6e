"""Measuring models that need no recipe: their accuracy on any data, and their speed."""
