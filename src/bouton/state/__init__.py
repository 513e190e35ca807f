"""What mechanisms remember, and how it is saved."""
