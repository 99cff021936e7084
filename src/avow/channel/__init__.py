"""Channels: addresses, server-side TLS, client identities, the acceptor in front of a broker."""
