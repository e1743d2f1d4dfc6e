"""Responses that try to be judged right without being right."""
