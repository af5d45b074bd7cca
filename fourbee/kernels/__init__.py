"""The operations contract and its implementations; torch is imported by `torch_*` modules only."""
