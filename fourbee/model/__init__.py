"""The Qwen3 architecture, its configuration, positions and checkpoint files; no torch here."""
