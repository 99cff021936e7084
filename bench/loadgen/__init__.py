"""The load generator: a loop in Zig, loaded into a process of its own."""
