"""What is said about a running program, how it is wrapped, and what a right answer proves."""
