"""avow: trust a broker that runs on somebody else's machine. See the rooms for what is inside."""

__version__ = "0.1.0"
