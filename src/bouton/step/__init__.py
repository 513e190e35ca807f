"""Around an optimizer's step: the rate and the structure site."""
