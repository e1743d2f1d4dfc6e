"""Errors a user can act on: each says where, what was got, what was expected and what to do."""


class MastersError(Exception):
    """Anything Masters refuses or gives up on, with a message for the person who runs it."""


class RecipeError(MastersError):
    """The recipe (or an override of it) says something it may not say."""


class DataError(MastersError):
    """A question, label, image or table on disk is missing, broken or contradictory."""


class ModelError(MastersError):
    """A model, tokenizer or processor cannot play the part the recipe gives it."""


class StageError(MastersError):
    """A stage cannot run, go on or be read back."""


class NonFiniteLossError(StageError):
    """The loss of an optimiser step is NaN or infinite."""


class ServerError(MastersError):
    """A server that a model is asked through refuses, or serves another model."""


class ServerGoneError(ServerError):
    """A server gives no answer any more, after every attempt; what it had given was handed out."""
