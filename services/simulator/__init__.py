"""A simulated venue: a server on loopback with a venue's own protocol and a known true book."""
