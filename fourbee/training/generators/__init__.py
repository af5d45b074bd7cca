"""Seeded generators of fourbee-mini's training and test samples; their wording is in `lexicon/`."""
