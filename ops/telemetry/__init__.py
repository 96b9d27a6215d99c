"""What every process says of itself: metrics declared once, the meter that records them, and how they leave it."""
