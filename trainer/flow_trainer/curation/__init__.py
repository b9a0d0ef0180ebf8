"""Image-text data: scored by the services, filtered, divided and written."""
