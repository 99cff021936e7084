"""Sealed storage: stores, the keys that open them, and the anchors that show they are fresh."""
