"""What a forward pass is: operations, their arguments and outputs, and what a rule says about an operation."""
