"""One module a venue protocol, each pure: frames and answers in, events out, no input or output."""
