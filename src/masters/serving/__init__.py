"""Asking a model that somebody else's server runs, over the OpenAI chat interface."""

from masters.serving.backoff import Backoff
from masters.serving.chat import ChatRequest, ChatResult
from masters.serving.server import Server

__all__ = ["Backoff", "ChatRequest", "ChatResult", "Server"]
