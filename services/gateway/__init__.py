"""The gateway: Envoy, configured from the contracts, in front of every service."""
