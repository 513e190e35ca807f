"""What works on any tensor: draws, memory, precision, and tensors that are spread over processes."""
