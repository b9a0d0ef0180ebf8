"""An epoch's optimizer steps."""
