"""Faults against a broker that keeps its state: nothing acknowledged is lost, nothing doubled."""
