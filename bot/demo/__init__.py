"""The embedded homeserver and the terminal chat: all that `musher demo` adds to the service."""
