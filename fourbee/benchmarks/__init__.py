"""Speed, measured: fourbee alone, beside its peers, and against the limits of the machine."""
