"""The broker: runs nats-server, keeps its streams as configured, shows what is in it."""
