"""From text to weights: data, the one trainer, its stages, and the generators of fourbee-mini."""
