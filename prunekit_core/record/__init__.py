"""Recording a forward pass on tensors without data."""
