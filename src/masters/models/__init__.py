"""The ground of torch: loading and saving VLMs, encoding prompts, streaming checkpoints, tiny models."""
