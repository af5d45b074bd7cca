"""What everything else stands on: errors, settings, runtime. Imports nothing of fourbee."""
