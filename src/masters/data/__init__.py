"""Torch-free nouns on disk: questions, images, tables of responses and rewards, rendered scenes."""
