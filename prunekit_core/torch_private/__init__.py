"""Every use of what PyTorch doesn't promise to keep; each file says what it relies on. A test looks for others."""
