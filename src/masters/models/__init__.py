"""The ground of torch: load and save VLMs, encode prompts, stream checkpoints, tiny models."""
