"""Several rewards behind one URL: see README.md."""
