"""How text is made: sampling that owns its randomness, and the engines that run models."""
