"""fourbee: serve, adapt, measure and use Qwen3 models on your own machine."""
