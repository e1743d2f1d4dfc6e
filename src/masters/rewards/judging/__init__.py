"""LLM-as-a-judge: two calls about one response, text that cannot pose as ours, kept verdicts."""
