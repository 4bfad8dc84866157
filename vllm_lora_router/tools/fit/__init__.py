"""The `fit` and `distill` commands: fit heads, fine-tune encoders and distill static encoders."""
