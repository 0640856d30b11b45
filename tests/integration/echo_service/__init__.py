"""A whole service in a few dozen lines: what docs/new-service.md describes, and the tests run."""
