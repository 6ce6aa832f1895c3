"""By which factors the tensors of a smaller program differ from the recorded ones, and what makes up for them."""
