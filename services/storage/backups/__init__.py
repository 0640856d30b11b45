"""Backups of the database: consistent, compressed, encrypted, and proved by checksum."""
