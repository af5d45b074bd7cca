"""From requests to tokens: scheduling, the model's steps, sampling, and text with stop strings."""
