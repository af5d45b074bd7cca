"""Text and tokens: tokenizer, detokenizer, chat format, tool-call parser, BPE training."""
