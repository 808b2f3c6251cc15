"""Models and tokenizers, as scoring and training both need them. The only home of transformers' loading code."""
