"""What the rewards built on CLIP share."""
