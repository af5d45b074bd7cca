"""Measuring a model: what a right answer is, how many were right, and how sure that is."""
