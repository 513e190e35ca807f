"""In the forward and the backward pass: the wiring and the error site."""
