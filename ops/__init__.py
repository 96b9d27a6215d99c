"""What the person on call needs to see and measure a running cluster."""
