"""Flow-matching models behind one interface, `policy.Policy`."""
