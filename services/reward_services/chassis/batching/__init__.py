"""From many calls to one batch on the device, and back."""
